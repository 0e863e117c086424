"""The targets of `mass segment`: what is written for each, in which process, and what is there already."""
