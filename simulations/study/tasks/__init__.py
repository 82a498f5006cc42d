"""`consilium-sim tasks`: one network for all tasks, or one for each."""
