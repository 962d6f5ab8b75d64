"""How long tests wait for what has to come."""

PATIENT_S = 240.0
"""After which a test is stuck. The machine may be slow or busy, and a test that is not stuck never waits so long."""
