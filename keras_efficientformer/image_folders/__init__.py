"""Images in folders: listed by class, split, held out, and matched with the classes of a model."""
