"""Video and sound files: what they hold, a span of both streams by presentation time, and writing them.

Zero of a source is the presentation time of its first video frame; sound is placed on the same clock, so a
stream that starts late becomes leading silence. Containers are read by timestamp and never by index.
PyAV probes (no ffprobe is needed), an ffmpeg process with a time limit decodes and encodes.
"""

from syncflow.media.decoding import Clip, Fit, decode_span
from syncflow.media.probing import AudioInfo, MediaInfo, probe
from syncflow.media.process import MediaError, ffmpeg_path, printable
from syncflow.media.sound import read_sound
from syncflow.media.writing import write_mp4, write_video, write_wav

__all__ = [
    "AudioInfo",
    "Clip",
    "Fit",
    "MediaError",
    "MediaInfo",
    "decode_span",
    "ffmpeg_path",
    "printable",
    "probe",
    "read_sound",
    "write_mp4",
    "write_video",
    "write_wav",
]
