"""What model and tokenizer files say: readers and writers, one module per format."""
