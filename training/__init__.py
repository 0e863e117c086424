"""Training comes with the next milestone: model, views, losses, trainer, fine-tuning, probing, inference, evaluation."""
