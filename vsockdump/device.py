"""Find, create and remove vsockmon devices."""
