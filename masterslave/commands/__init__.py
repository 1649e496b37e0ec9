"""What the command ``task_manager`` does, where that takes more than a few lines."""
