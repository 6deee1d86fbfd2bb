"""Questions for the SmolLM2 PARM: forms × topics, each topic wholly in training or wholly held out. MIT licence.

python examples/smollm2/prompts.py      writes train_prompts.txt (640) and, of the package, smollm2_held_out.txt (150)
"""

import random
from pathlib import Path

from parm_mlx.named import MODELS

HERE = Path(__file__).resolve().parent
SEED = 0
FORMS = (
    "What should I know about {}?",
    "Tell me about {}.",
    "Can you explain {} to a child?",
    "What is the most common mistake people make with {}?",
    "Give me some advice about {}.",
)
TRAIN = """
tea; coffee; bread; soup; rice; pancakes; a garden; tomatoes; roses; a cactus; a bicycle; a car battery; a leaking tap;
a blocked sink; a wooden floor; a wool sweater; a cat; a puppy; a hamster; goldfish; bees; owls; whales; dolphins;
spiders; ants; volcanoes; earthquakes; rainbows; clouds; snow; tides; the moon; Mars; black holes; comets; the heart;
the lungs; sleep; headaches; hiccups; running; swimming; yoga; stretching; walking; chess; the guitar; the piano;
singing; painting; photography; knitting; a job interview; a first date; a wedding speech; a birthday party;
a school exam; homework; a long flight; a train journey; a road trip; camping; a picnic; the beach; saving money;
a budget; taxes; a mortgage; insurance; a new phone; passwords; email; a slow computer; wifi; video calls;
online shopping; recycling; solar panels; electric cars; wind power; glass; paper; steel; plastic; gold; salt; sugar;
honey; cheese; chocolate; olive oil; vinegar; yeast; microwaves; refrigerators; mirrors; stress; shyness;
an argument with a friend; a noisy neighbour; a lost wallet; a broken window; a power cut; a heat wave; a flood;
a fire alarm; first aid; a burn; poetry; novels; history; grammar; Spanish; Latin; algebra; fractions; statistics;
gravity; magnets; electricity; atoms; cells; genes; dinosaurs; fossils; the pyramids; the Romans
"""
HELD_OUT = """
violins; a tent; thunder; a bakery; pottery; a passport; penguins; an old clock; a library; onions; a marathon;
the desert; a kite; umbrellas; glaciers; a lighthouse; moving house; a toothache; butterflies; submarines; bridges;
cinnamon; elephants; origami; mushrooms; a museum; candles; ballet; coral reefs; a haircut
"""


def topics(text: str) -> list[str]:
    """Returns the topics of a list."""
    return [" ".join(topic.split()) for topic in text.split(";")]


def questions(text: str) -> list[str]:
    """Returns every form of question about every topic of a list, in a fixed random order."""
    found = [form.format(topic) for topic in topics(text) for form in FORMS]
    random.Random(SEED).shuffle(found)
    return found


if __name__ == "__main__":
    assert not set(topics(TRAIN)) & set(topics(HELD_OUT))
    for file, listed in ((HERE / "train_prompts.txt", TRAIN), (MODELS / "smollm2_held_out.txt", HELD_OUT)):
        asked = questions(listed)
        file.write_text("\n".join(asked) + "\n", encoding="utf-8")
        print(f"{file.name}: {len(asked)} questions about {len(topics(listed))} topics")
