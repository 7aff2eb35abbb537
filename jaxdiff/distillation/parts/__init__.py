"""What several methods of distillation share: students, critics, targets."""
