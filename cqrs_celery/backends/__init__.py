"""The engines that keep events: one folder each, with the same file names in all of them."""
