"""How PyTorch is run: precision, batch sizes, schedules, distributed training and validated settings."""
