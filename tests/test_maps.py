"""Pictures of token maps."""

import numpy as np
import torch

import vartok
from vartok.images import to_pixels
from vartok.maps import draw_maps, enlarge
from vartok.tokens import TokenMaps


def test_cells_are_enlarged() -> None:
    values = np.arange(6).reshape(2, 3)
    assert enlarge(values, (4, 6)).tolist() == np.repeat(np.repeat(values, 2, 0), 2, 1).tolist()
    assert enlarge(values, (3, 3))[:, 0].tolist() == [0, 0, 3]


def test_maps_have_the_colours_of_their_codes(tokenizer: vartok.Tokenizer) -> None:
    maps = TokenMaps((torch.tensor([[[7]]]), torch.tensor([[[7, 8], [9, 7]]])))
    [tokens] = tokenizer.image_tokens(maps, ["img"])
    drawn = draw_maps(tokenizer, tokens)
    assert drawn.shape == (64, 64, 3)
    colors = np.rint(to_pixels(tokenizer.draw_codes([7, 8, 9])).mean((1, 2)))
    assert (drawn[:32, :32] == colors[0]).all()
    assert (drawn[:16, 48:] == colors[1]).all()
    assert (drawn[16:32, 32:48] == colors[2]).all()

    first, both = (to_pixels(image)[0].astype(int) for image in tokenizer.decode_prefixes(maps))
    assert (drawn[32:, 32:] == ((both - first + 256) // 2).clip(0, 255)).all()
    assert (draw_maps(tokenizer, tokens, 1) == drawn[:, :32]).all()


def test_some_codes_are_drawn_as_all_are(tokenizer: vartok.Tokenizer) -> None:
    assert torch.equal(tokenizer.draw_codes([5, 3]), tokenizer.draw_codes([5, 3, 5])[:2])
    assert tokenizer.draw_codes([5]).shape == (1, 3, 16, 16)
