"""Convert picture files to RGB pixels, pixels to tensors, and back.

`reading` decodes files, and `jpeg`, `png` and `tiff` do for it what Pillow does not. `color` converts to
sRGB. `fit` makes pixels of a picture or of its `views`, which `scaling` scales. `tensors` converts pixels to
tensors and PIL images. `writing` encodes files, and `animation` animated ones. Importing this package does
not import torch.
"""

from vartok.images.animation import ANIMATIONS, encode_animation
from vartok.images.color import parse_color
from vartok.images.fit import FITS, MAX_BYTES, MAX_PIXELS, MAX_SIDE, Fit, restore_size
from vartok.images.reading import (
    Picture,
    bytes_error,
    configure_pillow,
    picture_suffixes,
    read_file,
    read_picture,
)
from vartok.images.scaling import large_image_lock
from vartok.images.tensors import from_pil, scale_levels, to_levels, to_pil, to_pixels, to_tensor
from vartok.images.views import Views
from vartok.images.writing import FORMATS, SUFFIXES, encode_picture

__all__ = [
    "ANIMATIONS",
    "FITS",
    "FORMATS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "MAX_SIDE",
    "SUFFIXES",
    "Fit",
    "Picture",
    "Views",
    "bytes_error",
    "configure_pillow",
    "encode_animation",
    "encode_picture",
    "from_pil",
    "large_image_lock",
    "parse_color",
    "picture_suffixes",
    "read_file",
    "read_picture",
    "restore_size",
    "scale_levels",
    "to_levels",
    "to_pil",
    "to_pixels",
    "to_tensor",
]
