"""Runnable measurements; each records its configuration, versions and date under results/."""
