"""Find the faces of a photo, cut each out upright and aligned, and enhance the crops.

Start at `stage.py`, which does these in turn: `finding` asks a detector and the face finder where faces are,
`landmarks` where their eyes and mouths are, `geometry` cuts them out, `enhancing` runs the generator.
"""

from oldphoto.stages.faces.detectors import Detector, cnn_detector, frontal_detector
from oldphoto.stages.faces.face import Face, FoundFace
from oldphoto.stages.faces.finding import detect_faces, draw_faces
from oldphoto.stages.faces.landmarks import Landmarks

__all__ = [
    "Detector",
    "Face",
    "FoundFace",
    "Landmarks",
    "cnn_detector",
    "detect_faces",
    "draw_faces",
    "frontal_detector",
]
