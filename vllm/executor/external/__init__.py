"""The executor of programs that torchrun starts: a rank, and a scheduler, in every process."""
