"""What streams of a model that was trained here are worth: held-out streams, hand-written estimators, bars."""
