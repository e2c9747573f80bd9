"""From an exported model to tables of scores."""
