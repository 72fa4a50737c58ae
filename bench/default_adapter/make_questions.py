"""Write the question bank of the default adapter: plain questions of our own, some with a known answer.

    python bench/default_adapter/make_questions.py > questions.jsonl

Each line is {"instruction", "input", "output", "source"}; an empty output asks `self_answers.py` for the base model's own answer.
Everything here is written for this project (Apache-2.0).
"""

import json
import random

CAPITALS = """France Paris|Germany Berlin|Italy Rome|Spain Madrid|Portugal Lisbon|Japan Tokyo|China Beijing|India New Delhi|Russia Moscow
Egypt Cairo|Kenya Nairobi|Greece Athens|Turkey Ankara|Poland Warsaw|Austria Vienna|Hungary Budapest|Sweden Stockholm|Norway Oslo
Denmark Copenhagen|Finland Helsinki|Iceland Reykjavik|Ireland Dublin|Belgium Brussels|Canada Ottawa|Mexico Mexico City|Brazil Brasilia
Argentina Buenos Aires|Chile Santiago|Peru Lima|Colombia Bogota|Cuba Havana|Australia Canberra|New Zealand Wellington|Thailand Bangkok
Vietnam Hanoi|South Korea Seoul|Indonesia Jakarta|Malaysia Kuala Lumpur|Nepal Kathmandu|Pakistan Islamabad|Iran Tehran|Iraq Baghdad
Israel Jerusalem|Jordan Amman|Morocco Rabat|Nigeria Abuja|Ghana Accra|Ethiopia Addis Ababa|Ukraine Kyiv|Romania Bucharest
Bulgaria Sofia|Croatia Zagreb|Serbia Belgrade|Switzerland Bern|the Netherlands Amsterdam|the Czech Republic Prague|Slovakia Bratislava
the United Kingdom London|the United States Washington|the Philippines Manila|Saudi Arabia Riyadh|Singapore Singapore|Tunisia Tunis"""
TWO_WORD_COUNTRIES = ("New Zealand", "South Korea", "the Netherlands", "the Czech Republic", "the United Kingdom", "the United States",
                      "the Philippines", "Saudi Arabia")
AUTHORS = """Romeo and Juliet=William Shakespeare|Hamlet=William Shakespeare|Macbeth=William Shakespeare|Pride and Prejudice=Jane Austen
Emma=Jane Austen|Oliver Twist=Charles Dickens|A Christmas Carol=Charles Dickens|Great Expectations=Charles Dickens|Moby-Dick=Herman Melville
War and Peace=Leo Tolstoy|Anna Karenina=Leo Tolstoy|Crime and Punishment=Fyodor Dostoevsky|The Odyssey=Homer|The Iliad=Homer
Don Quixote=Miguel de Cervantes|Frankenstein=Mary Shelley|Dracula=Bram Stoker|The Time Machine=H. G. Wells|Treasure Island=Robert Louis Stevenson
Alice in Wonderland=Lewis Carroll|The Hobbit=J. R. R. Tolkien|Animal Farm=George Orwell|The Great Gatsby=F. Scott Fitzgerald
Adventures of Huckleberry Finn=Mark Twain|Les Miserables=Victor Hugo|The Divine Comedy=Dante|Faust=Goethe|Peter Pan=J. M. Barrie"""
OPPOSITES = """hot cold|big small|fast slow|up down|light dark|happy sad|old young|rich poor|hard soft|open closed|early late|high low
strong weak|full empty|clean dirty|day night|left right|wet dry|loud quiet|true false|near far|thick thin|begin end|buy sell|win lose"""
COLORS = """the sky blue|grass green|snow white|a banana yellow|a ripe tomato red|coal black|an orange orange|a lemon yellow|milk white|blood red
chocolate brown|a carrot orange|a cucumber green|an emerald green|a ruby red|the sun yellow"""
SYMBOLS = """hydrogen H|helium He|carbon C|nitrogen N|oxygen O|sodium Na|iron Fe|gold Au|silver Ag|copper Cu|lead Pb|calcium Ca|zinc Zn|neon Ne"""
LISTS = {
    "fruits": "apples, bananas and oranges", "vegetables": "carrots, peas and spinach", "colors": "red, green and blue",
    "animals": "dogs, cats and horses", "planets": "Mercury, Venus and Mars", "musical instruments": "the piano, the guitar and the violin",
    "sports": "soccer, tennis and basketball", "countries in Europe": "France, Germany and Italy", "birds": "eagles, sparrows and owls",
    "kinds of weather": "rain, snow and sunshine", "tools": "a hammer, a saw and a screwdriver", "pieces of furniture": "a table, a chair and a bed",
    "oceans": "the Pacific, the Atlantic and the Indian Ocean", "programming languages": "Python, Java and C", "shapes": "a circle, a square and a triangle",
    "body parts": "the head, the arm and the leg", "metals": "iron, copper and gold", "trees": "oak, pine and maple",
    "school subjects": "math, history and science", "drinks": "water, tea and milk", "insects": "ants, bees and beetles",
}
TOPICS = """gravity|photosynthesis|the moon|the sun|the ocean|volcanoes|earthquakes|rain|snow|clouds|electricity|magnets|atoms|DNA|bacteria|viruses
the heart|the brain|lungs|blood|bones|muscles|sleep|dreams|exercise|vitamins|protein|water|fire|ice|glass|paper|plastic|steel|gold|oil|coal
solar energy|wind power|computers|the internet|software|robots|telephones|cameras|clocks|bicycles|cars|trains|airplanes|ships|rockets|satellites
bridges|roads|houses|schools|hospitals|libraries|museums|banks|money|taxes|trade|democracy|laws|courts|police|soldiers|history|geography
mathematics|physics|chemistry|biology|medicine|music|painting|poetry|theater|films|novels|newspapers|language|grammar|writing|reading|friendship
love|courage|honesty|kindness|patience|anger|fear|happiness|family|children|teachers|doctors|farmers|cooks|artists|scientists|engineers|bread
cheese|coffee|tea|chocolate|sugar|salt|rice|pasta|apples|bananas|potatoes|soup|breakfast|dogs|cats|horses|cows|chickens|elephants|lions|whales
dolphins|sharks|birds|owls|penguins|bees|butterflies|spiders|snakes|frogs|trees|flowers|roses|grass|forests|deserts|mountains|rivers|lakes|islands
spring|summer|autumn|winter|the weather|climate change|recycling|pollution|stars|planets|Mars|black holes|the Roman Empire|ancient Egypt
the Middle Ages|the Renaissance|the Industrial Revolution|chess|soccer|tennis|swimming|running|yoga|gardening|cooking|travel|photography"""
PEOPLE = """Albert Einstein|Isaac Newton|Marie Curie|Charles Darwin|Galileo|Leonardo da Vinci|Mozart|Beethoven|Vincent van Gogh|Napoleon
Julius Caesar|Cleopatra|George Washington|Abraham Lincoln|Mahatma Gandhi|Nelson Mandela|Martin Luther King|Aristotle|Plato|Socrates
Christopher Columbus|Thomas Edison|Nikola Tesla|Alan Turing|Florence Nightingale|Queen Victoria|William Shakespeare|Alexander the Great"""
TASKS = """boil an egg|make tea|write a letter|learn a language|save money|sleep better|study for a test|clean a window|plant a tree|bake bread
stay healthy|make friends|fix a flat tire|cook rice|wash clothes|lose weight|improve my writing|start running|draw a face|paint a wall
train a dog|take a good photo|speak in public|remember names|stop being late|read faster|plan a trip|grow tomatoes|make pancakes|relax
write a poem|prepare for an interview|manage my time|stay calm|drink more water|build a birdhouse|learn to swim|choose a book|care for a cat"""
FORMS = ["What is the meaning of {x}?", "Explain {x} in simple terms.", "Write a sentence about {x}.", "Tell me about {x}.",
         "Why is {x} important?", "Describe {x} in one sentence.", "Tell me one interesting fact about {x}.", "What do you know about {x}?"]


def cut(table: str) -> list[str]:
    return [item for line in table.split("\n") for item in line.split("|")]


def known() -> list[tuple[str, str]]:
    rows = []
    for item in cut(CAPITALS):
        country = next((name for name in TWO_WORD_COUNTRIES if item.startswith(name + " ")), item.split(" ")[0])
        city = item[len(country) + 1:]
        rows += [(f"What is the capital of {country}?", f"The capital of {country} is {city}."),
                 (f"Name the capital city of {country}.", f"The capital city of {country} is {city}."),
                 (f"Which country has {city} as its capital?", f"{city} is the capital of {country}.")]
    for item in cut(AUTHORS):
        book, author = item.split("=")
        rows += [(f"Who wrote {book}?", f"{book} was written by {author}."), (f"Who is the author of {book}?", f"The author of {book} is {author}.")]
    for item in cut(OPPOSITES):
        a, b = item.split(" ")
        rows += [(f'What is the opposite of "{a}"?', f'The opposite of "{a}" is "{b}".'), (f'Give the opposite of the word "{b}".', f'The opposite of "{b}" is "{a}".')]
    for item in cut(COLORS):
        thing, color = item.rsplit(" ", 1)
        rows += [(f"What color is {thing}?", f"{thing[0].upper() + thing[1:]} is {color}.")]
    for item in cut(SYMBOLS):
        element, symbol = item.split(" ")
        rows += [(f"What is the chemical symbol for {element}?", f"The chemical symbol for {element} is {symbol}.")]
    for kind, three in LISTS.items():
        rows += [(f"Name three {kind}.", f"Three {kind} are {three}."), (f"Give me three examples of {kind}.", f"Three examples of {kind} are {three}.")]
    for a in range(1, 11):
        for b in range(a, 11):
            rows += [(f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}.")]
    for greeting in ("Hello!", "Hi there!", "Good morning!", "Hey, how are you?"):
        rows += [(greeting, "Hello! How can I help you today?")]
    rows += [("Thank you!", "You're welcome!"), ("Who are you?", "I am a small language model that writes by diffusion."),
             ("How many days are in a week?", "There are seven days in a week."), ("How many months are in a year?", "There are twelve months in a year."),
             ("How many legs does a spider have?", "A spider has eight legs."), ("What is the largest ocean?", "The largest ocean is the Pacific Ocean."),
             ("What is the largest planet?", "The largest planet in our solar system is Jupiter."), ("What is the tallest mountain?", "The tallest mountain is Mount Everest."),
             ("At what temperature does water boil?", "Water boils at 100 degrees Celsius."), ("At what temperature does water freeze?", "Water freezes at 0 degrees Celsius.")]
    return rows


def unanswered() -> list[str]:
    rows = [form.format(x=topic) for topic in cut(TOPICS) for form in FORMS]
    rows += [form.format(x=person) for person in cut(PEOPLE) for form in ("Who was {x}?", "What is {x} known for?", "Tell me about {x}.")]
    rows += [form.format(x=task) for task in cut(TASKS) for form in ("How do I {x}?", "Give me a tip: how can I {x}?", "What is the best way to {x}?")]
    return rows


if __name__ == "__main__":
    lines = [(question, answer) for question, answer in known()] + [(question, "") for question in unanswered()]
    random.Random(0).shuffle(lines)
    for question, answer in lines:
        print(json.dumps({"instruction": question, "input": "", "output": answer, "source": "lad_known" if answer else "lad_questions"}))
