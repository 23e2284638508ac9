"""A gate for the language of a hypothesis: a factor of rewards that look at no reference."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from typing import Any

from esrl_fairseq.core.suggest import did_you_mean
from esrl_fairseq.data.text import UNK_IN_HYPOTHESIS
from esrl_fairseq.errors import EsrlError
from esrl_fairseq.rewards.base import Reward, register_reward
from esrl_fairseq.rewards.extras import require

ODDS = 10.0
"""On captions, 10 lets through all texts of the right language, also those of three words, and none
of eight words or more in another one."""

# ISO 639-2 and 639-3, as in the names of NLLB and FLORES, to the identifier's own codes.
CODES = """
afr:af amh:am ara:ar arb:ar asm:as azj:az aze:az bak:ba bel:be ben:bn bos:bs bul:bg cat:ca ces:cs
cmn:zh cym:cy dan:da deu:de ell:el eng:en epo:eo est:et ekk:et eus:eu fas:fa pes:fa fao:fo fil:tl
fin:fi fra:fr fry:fy gaz:om gla:gd gle:ga glg:gl grn:gug guj:gu hat:ht hau:ha heb:he iw:he hin:hi
hrv:hr hun:hu hye:hy ibo:ig ind:id isl:is ita:it jav:jv jpn:ja kan:kn kat:ka kaz:kk khk:mn khm:km
kin:rw kir:ky kmr:ku kor:ko kur:ku lao:lo lat:la lav:lv lvs:lv lin:ln lit:lt ltz:lb lug:lg mal:ml
mar:mr mkd:mk mlg:mg plt:mg mlt:mt mon:mn msa:ms zsm:ms mya:my nb:no nep:ne npi:ne nld:nl nno:nn
nob:no nor:no ns:nso oci:oc ori:or ory:or orm:om pan:pa pbt:ps pus:ps pol:pl por:pt que:qu quy:qu
ron:ro rus:ru san:sa sin:si slk:sk slv:sl sna:sn som:so sot:st spa:es sqi:sq als:sq srp:sr swa:sw
swh:sw swe:sv tam:ta tat:tt tel:te tgk:tg tgl:tl tha:th tuk:tk tur:tr uig:ug ukr:uk urd:ur uzb:uz
uzn:uz vie:vi wln:wa xho:xh yor:yo zho:zh zul:zu
"""
SHORT = dict(pair.split(":") for pair in CODES.split())


@register_reward("language-gate")
class LanguageGate(Reward):
    """1 for a text in the language, 0 for one in another language or in none.

    A text is in another one if that is `odds` times as probable to py3langid, which knows some 160
    languages and needs nothing but its own files. A hypothesis that repeats its source has to be
    more probable in the language than in any other. Texts without letters are in no language;
    unknown words are no letters. References are not needed.

    Args:
        language: of the outputs, in ISO 639 or as mBART and NLLB write it: ``de``, ``deu``,
            ``de_DE``, ``deu_Latn``.
        odds: above 1; higher ones let more texts through.

    Raises:
        EsrlError: py3langid is missing or does not know the language, or `odds` is out of range.
    """

    range = (0.0, 1.0)
    needs_references = False

    def __init__(self, language: str | None = None, odds: float = ODDS) -> None:
        if isinstance(odds, (bool, str)) or not odds >= 1:
            raise EsrlError(f"reward {self.name!r}: odds must be a number from 1, not {odds!r}")
        self.odds = odds
        module = require(self.name, "py3langid.langid", "py3langid", "language")
        self._identifier = _identifier(module)
        self.language = self._code(language)

    def _code(self, language: str | None) -> str:
        """The identifier's name of the language."""
        known = sorted(set(self._identifier.labels))
        short = str(language).replace("-", "_").partition("_")[0].lower()
        code = SHORT.get(short, short)
        if code not in known:
            raise EsrlError(
                f"reward {self.name!r}: {language!r} is no language that py3langid knows"
                f"{did_you_mean(short, known)}: say which language the outputs have to be in by "
                f"--reward-options {self.name}.language=…, one of {', '.join(known)}"
            )
        return code

    def signature(self) -> str:
        """Language, rule and the identifier's version."""
        from importlib.metadata import version

        return f"{self.name}|{self.language}|odds:{self.odds:g}|py3langid:{version('py3langid')}"

    def score(
        self,
        sources: Sequence[str],
        references: Sequence[Sequence[str]],
        hypotheses: Sequence[str],
        row_input: Sequence[int],
    ) -> list[float]:
        """[rows]; see `Reward.score`."""
        return [
            float(self._passes(text, 1.0 if _same(text, sources[i]) else self.odds))
            for text, i in zip(hypotheses, row_input)
        ]

    def _passes(self, text: str, odds: float) -> bool:
        text = " ".join(word for word in text.split() if word != UNK_IN_HYPOTHESIS)
        if not any(unicodedata.category(letter).startswith("L") for letter in text):
            return False
        probable = dict(self._identifier.rank(text))
        own = probable.pop(self.language)
        return bool(own * odds >= max(probable.values()))


@functools.cache
def _identifier(module: Any) -> Any:
    """It takes a second to load, and 100 MB."""
    return module.LanguageIdentifier.from_model_file(module.MODEL_FILE, norm_probs=True)


def _same(one: str, other: str) -> bool:
    """Whether texts differ in case and blanks alone."""
    return one.casefold().split() == other.casefold().split()
