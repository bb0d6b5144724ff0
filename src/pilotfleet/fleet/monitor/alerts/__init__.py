"""Rules over the figures, and whom they tell."""
