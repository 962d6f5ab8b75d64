"""Sound as the hidden states of a wav2vec2 model, one set for every video frame.

wav2vec2 (arXiv 2006.11477) looks both ways along the whole of what it is given and gives a state every 20 ms.
The published models give it a whole file and read the states at 30 frames a second, of which a video frame takes the
nearest. `WholeFile` is that. `Listening` is the same for sound that is still going on: it looks at the last few
seconds for every chunk, so memory and time are constant and the only wait is the lookahead.
"""

from stages.encode.wav2vec.listening import Features, Listening, WholeFile, nearest_read
from stages.encode.wav2vec.model import FIELD, HOP, RATE, Wav2Vec, parameter_count

__all__ = [
    "FIELD",
    "HOP",
    "RATE",
    "Features",
    "Listening",
    "Wav2Vec",
    "WholeFile",
    "nearest_read",
    "parameter_count",
]
