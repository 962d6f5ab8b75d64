"""What the rest of Everframe knows of this codec without loading it."""

from conf.codecs import Declared

CODEC = Declared(encoder="wan", first_frames=1)
