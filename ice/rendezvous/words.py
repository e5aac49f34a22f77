"""The words that made codes consist of.

256, so that one octet of entropy is one word.  Chosen to be said over a telephone: known to people
who learnt English late, of four to eight letters, no two of them within two letters of each other
(insertions, deletions, changes) and no two with the same first four.  A program of another version
has to make sense of a code as well, so the list never changes: what is needed is another list.
"""

from __future__ import annotations

from typing import Final

WORDS: Final = tuple(
    """
    acorn acrobat airport album alpine amber anchor animal apron arctic artist aspen atlas
    autumn avocado badger balcony ballet bamboo banana banjo barrel battery beacon beaver beetle
    bicycle biscuit blossom bonfire breeze bridge brush bubble buffalo bulldog button cabin
    cactus camera canoe captain caramel carrot castle catalog cedar cherry chimney cinema circus
    cloud cobalt coconut comet compass concert cottage coyote crystal cupcake daisy dancer denim
    desert desk diamond doctor dolphin domino dragon drill drummer dune dwarf easel echo elbow
    emerald engine evening fabric farmer feather fender fiddle flute forest fossil fudge galaxy
    garden garlic giraffe goblin gorilla granite grape guitar hamster harbor harvest helmet
    honey horizon hurdle iceberg igloo indigo insect island ivory jaguar jelly jigsaw jogger
    journal jungle juniper kayak kennel ketchup kitchen kiwi koala lagoon lantern laptop lava
    lemon leopard library lizard lobster lunar mammoth maple market meadow melody mermaid
    mineral mirror mitten monarch muffin museum napkin nectar nickel noodle oasis oatmeal
    octopus olive omelet onion orbit orchard osprey ostrich otter oxygen palace pancake panda
    papaya pastry peacock pelican pencil penguin pepper piano picnic pigeon pilot pirate planet
    plumber polar popcorn potato prairie pretzel pulley pumpkin puzzle pyramid quartz queen
    quilt rabbit raccoon radio rainbow reef ribbon river robot rocket rubber ruby runway safari
    saffron sailor salad salmon school scooter seagull siren slipper snail soccer sofa spider
    spinach stadium stone sunset swallow tadpole teacup teapot temple tennis thimble thunder
    tornado tractor trout trumpet tulip tundra tuxedo unicorn vacant vacuum vanilla violin
    visitor volcano voyage vulture waffle walnut whale wheel whistle window winter wombat yodel
    zebra
    """.split()  # noqa: SIM905 (one word a line would be 256 lines)
)
