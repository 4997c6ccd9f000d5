"""The paper: views, masks, model, losses and the pre-training loop."""
