"""Write more plain questions for the base model to answer: everyday ones of our own, and those of CommonsenseQA without their options.

    python bench/default_adapter/everyday_questions.py perm-mc-csqa_mc.jsonl.gz > everyday.jsonl

The lines are those of `make_questions.py`. A question that says nearly what a held-out prompt says is left out. Ours were written for
this project (Apache-2.0); CommonsenseQA is MIT.
"""

import argparse
import gzip
import json
import random
import re
from itertools import product
from pathlib import Path

HELD_OUT = ("prompts.txt", "tuning_prompts.txt")
# Of the words of two questions, this share in common is too near.
NEAR = 0.6
FROM_CSQA = 2000

ANIMALS = """dogs|cats|horses|sheep|goats|pigs|chickens|ducks|rabbits|mice|foxes|wolves|lions|tigers|elephants|giraffes|zebras
monkeys|owls|eagles|parrots|penguins|frogs|turtles|snakes|spiders|ants|bees|butterflies|whales|dolphins|sharks|crabs|bats
squirrels|deer|camels|kangaroos"""
OF_ANIMALS = (
    "What do {x} like to eat?",
    "Where do {x} usually live?",
    "What sound do {x} make?",
    "How do {x} move around?",
    "What do {x} look like?",
    "How do {x} protect themselves?",
    "Name one thing that {x} are good at.",
)
OBJECTS = """hammer|spoon|pencil|ladder|bucket|mirror|blanket|umbrella|clock|lamp|broom|needle|key|candle|comb|towel|pillow|map
compass|thermometer|telescope|microscope|calculator|wallet|helmet|raincoat|backpack|bottle|kettle|oven|fridge|washing machine
tractor|boat|tent|rope|whistle|drum"""
OF_OBJECTS = (
    "What is a {x} used for?",
    "What is a {x} made of?",
    "When do people need a {x}?",
    "Describe a {x} in one short sentence.",
    "Where would you keep a {x}?",
    "What shape does a {x} usually have?",
)
PLACES = """a bakery|a garden|a bathroom|a hospital|a museum|a supermarket|a farm|an airport|a train station|a classroom
a bedroom|an office|a zoo|a park|a post office|a bank|a restaurant|a garage|a gym|a theater|a beach|a forest|a desert|a castle
a harbor|a pharmacy|a workshop"""
OF_PLACES = (
    "Name two things you can see in {x}.",
    "What do people do in {x}?",
    "Who works in {x}?",
    "What can you hear in {x}?",
    "Why do people go to {x}?",
    "Write one sentence about {x}.",
)
JOBS = """nurse|pilot|carpenter|plumber|judge|tailor|fisherman|gardener|librarian|mechanic|dentist|firefighter|baker|butcher
journalist|musician|farmer|cook|driver|lawyer|painter|teacher|doctor|scientist|engineer|waiter|barber|architect|sailor|actor
dancer|writer"""
OF_JOBS = (
    "What does a {x} do?",
    "What tools does a {x} need?",
    "Where does a {x} work?",
    "Why is a {x} important?",
    "What should a good {x} know?",
)
WHO = """repairs cars|flies airplanes|puts out fires|catches thieves|grows vegetables|cuts hair|writes newspapers
builds houses|delivers letters|looks after sick animals|designs bridges|sells medicine|sings in an opera|leads an orchestra
drives a bus|cleans the streets|makes shoes|paints pictures|works on a ship|takes care of teeth|guards a castle|studies the stars
catches fish|bakes cakes|runs a country"""
WHY = """people sleep|leaves fall in autumn|dogs bark|people laugh|birds fly south|people brush their teeth
plants need light|people go to school|ships float|clocks tick|people shake hands|cats purr|trees have roots|people wear shoes
babies cry|people keep pets|people read stories|houses have roofs|cars need fuel|people celebrate birthdays|people travel
bees visit flowers|people learn languages|people use money|people exercise|rivers flow|stars shine|people cook food
windows have glass|people vote|people listen to music|people wash their hands|farmers plant seeds|people use umbrellas
people drink coffee|people write letters"""
WHEN = """you drop a glass|you mix blue and yellow|the sun sets|you heat milk|it rains for a long time
you forget to water a flower|you plant a seed|a balloon gets too much air|you leave food in the sun|you stay awake all night
the wind blows hard|you add salt to water|metal gets wet|you eat too much sugar|you put wood in a fire|a battery is empty
you practice every day|a river floods|you tell a lie|the power goes out|you stretch a rubber band|you boil an egg|you push a swing
a clock stops|you shout in a cave|you throw a ball up|snow falls at night"""
PAIRS = """a horse or a dog|a car or a bus|a lake or an ocean|a hill or a mountain|the sun or the moon|a tree or a flower
a book or a newspaper|a whale or a shark|a chair or a table|a village or a city|a grape or a melon|an ant or a spider
a house or a tent|a river or a stream"""
COMPARED = ("Which is bigger, {x}?", "Which is heavier, {x}?", "Which do you see more often, {x}?", "What is the difference between {x}?")
FEELINGS = """sad|nervous before a test|sick|lonely|angry|far from home|new at school|about to travel|celebrating a birthday
looking for work|worried about money|learning to drive|waiting for news|starting a new job|getting married|moving to a new house
losing a game"""
OF_FEELINGS = (
    "Say something kind to a friend who is {x}.",
    "Write a short message to someone who is {x}.",
    "How can I help a friend who is {x}?",
)
DOING = """staying focused|remembering names|cooking for guests|growing tomatoes|packing a suitcase|making new friends
eating less sugar|walking more|speaking clearly|keeping a room tidy|learning new words|taking better photos|riding a horse
drawing people|training a puppy|working from home|sleeping on a plane|choosing a gift|cleaning a kitchen|saving water
writing a story|playing chess|singing better"""
OF_DOING = ("Give me one tip for {x}.", "What is a good first step for {x}?", "Why is {x} difficult?")
TO_DO = """go for a walk|eat vegetables|learn to cook|plant a tree|visit a museum|wear a helmet|save money|call a friend
get up early|turn off the lights|help a neighbor|write a diary|learn to swim|eat breakfast|recycle paper|take a break
read the news|listen to others|play an instrument|keep a pet|travel by train|say thank you|clean your room|go to bed early
learn history"""
OF_TO_DO = ("Tell me one reason to {x}.", "When is a good time to {x}?", "Is it a good idea to {x}?", "How do I begin to {x}?")
SUBJECTS = """a cat|a train|the moon|a storm|a market|my grandmother|a lost key|a birthday party|the first snow|a red car
a small village|a brave girl|an old tree|the night sky|a busy street|a quiet morning|a long journey|a good friend|a hungry bear
a broken window|the wind|a lighthouse"""
OF_SUBJECTS = ("Write a short sentence about {x}.", "Write a sentence about {x} for a child.", "Describe {x} with a few words.")
WORDS = """large|small|quick|angry|begin|finish|smart|brave|quiet|funny|beautiful|difficult|easy|strange|rich|tired|cold|clean
old|kind|strong|sad|noisy|empty|dangerous|famous|lazy|honest|polite|rough"""
OF_WORDS = ("What is a word that means the same as {x}?", 'Use the word "{x}" in a sentence.', "Which word is the opposite of {x}?")
FORMS = (
    (ANIMALS, OF_ANIMALS), (OBJECTS, OF_OBJECTS), (PLACES, OF_PLACES), (JOBS, OF_JOBS), (WHO, ("Who {x}?",)), (WHY, ("Why do {x}?",)),
    (WHEN, ("What happens when {x}?", "What should I do when {x}?")), (PAIRS, COMPARED), (FEELINGS, OF_FEELINGS), (DOING, OF_DOING),
    (TO_DO, OF_TO_DO), (SUBJECTS, OF_SUBJECTS), (WORDS, OF_WORDS),
)  # fmt: skip


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


def held_out() -> list[set[str]]:
    """Return the words of every held-out prompt."""
    folder = Path(__file__).resolve().parents[1] / "quality"
    lines = [line for name in HELD_OUT for line in (folder / name).read_text(encoding="utf-8").splitlines()]
    return [words(line) for line in lines if line and not line.startswith("#")]


def is_near(question: str, prompts: list[set[str]]) -> bool:
    mine = words(question)
    return any(len(mine & other) >= NEAR * len(mine | other) for other in prompts)


def everyday() -> list[str]:
    """Return our questions."""
    out = []
    for table, forms in FORMS:
        items = [item for line in table.split("\n") for item in line.split("|")]
        out += [form.format(x=item) for item, form in product(items, forms)]
    return out


def of_csqa(path: Path) -> list[str]:
    """Return questions of a file of {"input": "question\\noptions"} lines, without the options."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        found = [json.loads(line)["input"].split("\n")[0].strip() for line in lines]
    asked = [question for question in found if question.endswith("?") and len(question) < 110]
    random.Random(0).shuffle(asked)
    return asked[:FROM_CSQA]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("csqa", type=Path)
    asked = [(question, "lad_everyday") for question in everyday()]
    asked += [(question, "csqa") for question in of_csqa(parser.parse_args().csqa)]
    prompts = held_out()
    asked = [(question, source) for question, source in dict.fromkeys(asked) if not is_near(question, prompts)]
    random.Random(1).shuffle(asked)
    for question, source in asked:
        print(json.dumps({"instruction": question, "input": "", "output": "", "source": source}))


if __name__ == "__main__":
    main()
