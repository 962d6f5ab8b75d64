"""The models that are trained here: a few million parameters, driven by sound, by actions, or both."""
