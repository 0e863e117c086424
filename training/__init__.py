"""Training comes with the next milestone: model, views, losses, trainer, probing, inference, evaluation."""
