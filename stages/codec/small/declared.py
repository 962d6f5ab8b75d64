"""What the rest of Everframe knows of this codec without loading it."""

from conf.codecs import Declared

CODEC = Declared()
