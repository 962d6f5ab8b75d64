"""What the pocket models' streams are worth: held-out streams, hand-written estimators, bars, a report."""
