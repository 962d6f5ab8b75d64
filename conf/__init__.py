"""Everything that can be configured: Hydra's YAML groups, their types and rules, and the error a user sees."""
