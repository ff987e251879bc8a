"""What processes say to each other: requests, steps, caches, ranks; and how it is encoded."""
