"""What a person writes: Hydra's composition turned into typed, validated data."""
