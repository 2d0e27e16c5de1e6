"""Images in batches: folders, ImageNet, loaders, augmentation."""
