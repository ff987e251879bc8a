"""What a device must be able to do: interfaces that platforms implement and shared code calls."""
