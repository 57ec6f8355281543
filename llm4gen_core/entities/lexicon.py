"""Words that both entity parsers know: which nouns are attributes, which adjectives are none, which words are names.

English is a large language and these lists are short: they hold what captions of images are full of. What they do not
hold is told by its ending and by its place (`rules`), or by the dependency parse (`spacy`).
"""

from __future__ import annotations

VERSION = 1
"""Of the lists and rules of both parsers. Raise it with every change: the trainer's caches depend on it."""

MOST_JOINED = 12
"""Things that "and" joins in one phrase. What has more is no caption, and must not take for ever."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _pairs(text: str) -> frozenset[tuple[str, str]]:
    """Of "first second, first second"; the plural of the second is meant too."""
    pairs = [tuple(pair.split()) for pair in text.split(",")]
    return frozenset((first, second + ending) for first, second in pairs for ending in ("", "s", "es"))


COLORS = _words(
    "red orange yellow green blue purple violet indigo pink brown black white gray grey beige tan maroon crimson "
    "scarlet magenta turquoise teal cyan navy lavender lilac mauve burgundy khaki gold golden silver bronze copper "
    "aqua azure emerald fuchsia taupe ochre chartreuse vermilion sepia rainbow blond blonde auburn brunette"
)
"""Names of colours that describe the noun behind them, and that a thing can be painted or "in"."""

MATERIALS = _words(
    "wood metal leather glass plastic stone brick concrete steel iron gold silver bronze copper brass aluminum "
    "aluminium tin marble granite ceramic porcelain clay paper cardboard cotton wool silk velvet denim linen lace "
    "satin fur suede canvas rubber bamboo oak pine mahogany teak ebony wicker rattan straw crystal diamond pearl jade "
    "ice fabric foam chrome titanium felt fleece nylon polyester tweed corduroy vinyl terracotta sandstone limestone "
    "slate cement plywood cork wire mesh cobblestone adobe burlap cashmere fiberglass acrylic tile platinum obsidian "
    "timber hardwood driftwood stucco clapboard yarn spandex latex pewter enamel quartz amber onyx"
)
"""Nouns that say what a thing is made of."""

PATTERNS = _words(
    "plaid tartan gingham paisley camouflage camo argyle herringbone houndstooth tie-dye leopard-print zebra-print "
    "stripe stripes spot spots dot dots polka-dot polka-dots check checks zigzag zigzags swirl swirls speckle speckles "
    "freckles patch patches pinstripe pinstripes chevron chevrons rhinestones sequins sequin glitter checkerboard"
)
"""Nouns that say what a surface shows."""

SHADES = _words("dark light pale bright deep vivid pastel neon medium muted")
"""Before a colour these are part of it: "dark red" is one attribute."""

COMPOUND_ATTRIBUTES = _pairs(
    "sky blue, navy blue, royal blue, baby blue, baby pink, hot pink, forest green, olive green, lime green, "
    "mint green, sea green, emerald green, jet black, pitch black, snow white, off white, brick red, blood red, "
    "cherry red, ruby red, rose gold, salmon pink, coral pink, mustard yellow, lemon yellow, chocolate brown, "
    "steel blue, steel gray, steel grey, slate gray, slate grey, ash gray, ash grey, charcoal gray, charcoal grey, "
    "midnight blue, powder blue, electric blue, burnt orange, stainless steel, carbon fiber, stained glass, polka dot, "
    "leopard print, zebra print, animal print, tie dye, wrought iron, cast iron, cherry wood, faux fur, faux leather"
)
"""Two words that are one attribute."""

NAMES = _pairs(
    "hot dog, high school, fast food, living room, dining room, sweet potato, great dane, ice cream, ice rink, "
    "ice skate, ice cube, ice hockey, cotton candy, stone age, paper towel, toilet paper, orange juice, orange tree, "
    "oak tree, pine tree, pine cone, pine forest, walnut tree, bamboo forest, light bulb, light pole, light switch, "
    "light fixture, street light, traffic light, stop light, stop sign, street sign, bus stop, sleeping bag, "
    "walking stick, running shoe, rocking chair, swimming pool, washing machine, mixing bowl, rolling pin, "
    "wrapping paper, waiting room, tennis match, skate park, red wine, white wine, green tea, french fry, french frie, "
    "teddy bear, guinea pig, new york, los angeles, san francisco, high heel, flying saucer, shooting star, gas station"
    ", fire hydrant, cell phone, coffee table, parking meter, baseball bat, tennis racket, snow globe, palm tree"
)
"""Two words that name one thing: the first is not its attribute."""

QUANTITIES = _words(
    "piece pieces pile piles stack stacks block blocks slab slabs sheet sheets bunch lot lots couple pair pairs group "
    "groups set sets row rows lump lumps bar bars cup cups bowl bowls plate plates kind type sort glass bottle bottles "
    "field body bundle heap load roll rolls bag bags box boxes bit bits amount number photo photograph picture image "
    "painting drawing close-up closeup view collection variety series layer layers"
)
"""Nouns whose "of gold" tells the contents: a pile of wood is not wooden."""

NOT_ENTITIES = _words(
    "quality resolution detail details way ways time times kind kinds type types sort sorts number lot lots bit idea "
    "example reason case fact level order amount point chance moment"
)
"""Nouns that nothing in a picture stands for."""

NOT_ATTRIBUTES = _words(
    "other others same such own many several few various multiple numerous more most less least much some different "
    "certain next last first second third fourth fifth previous former latter main only whole entire very single "
    "double similar additional extra possible available able likely sure due top side front left right rear upper "
    "lower nearby middle central center back bottom opposite close-up closeup particular specific overall general "
    "another one two three four five six seven eight nine ten eleven twelve hundred thousand what which whose else "
    "enough alone"
)
"""Adjectives to a grammar book, but not what a thing looks like: order, amount, position."""

NEGATIONS = _words("not never neither nor n't non without no cannot")

STATES = _words(
    "painted colored coloured dyed tinted striped spotted dotted checkered chequered covered coated decorated adorned "
    "wrapped folded crumpled broken cracked shattered burned burnt rusted worn torn ripped stained faded bent twisted "
    "tied knotted closed opened locked lit illuminated carved engraved embroidered printed patterned woven knitted "
    "stuffed filled packed loaded stacked piled sliced peeled chopped cooked baked fried grilled frozen melted wilted "
    "dried soaked polished glazed gilded varnished dressed tattooed shaved braided curled wrinkled furrowed pleated "
    "quilted ruined abandoned destroyed damaged boarded overgrown fenced framed paved tiled carpeted furnished "
    "upholstered parked seated mounted perched tilted raised outstretched spread crossed trimmed studded splattered "
    "smeared dusted frosted weathered battered scratched dented shaped"
)
"""Participles that, behind their noun or said of it, tell how it looks and not what is done to it."""

MAKING = _words(
    "made carved built sculpted woven knitted crafted constructed formed cast molded moulded dressed clad painted "
    "colored coloured dyed covered coated decorated wrapped cut sewn assembled forged crocheted glazed plated lined "
    "dipped rendered printed clothed attired adorned patterned marked"
)
"""Participles whose "of wood", "in red" or "with stripes" is the attribute; the participle itself then is none."""

ADJECTIVES = _words(
    # size and weight
    "big small large little tiny huge giant gigantic enormous massive miniature tall short long high low wide narrow "
    "thick thin fat slim slender skinny chubby plump broad heavy compact oversized mini colossal immense petite "
    # shape
    "round square rectangular triangular circular oval oblong spherical cubic cylindrical curved straight flat pointed "
    "pointy crooked bent conical hexagonal octagonal pentagonal curvy angular sharp blunt hollow domed arched spiral "
    "steep diagonal vertical horizontal symmetrical heart-shaped star-shaped diamond-shaped teardrop "
    # texture and surface
    "soft hard rough smooth fluffy furry fuzzy hairy shaggy silky velvety slick sleek shiny glossy matte dull bumpy "
    "coarse grainy sticky slippery slimy crisp crispy crunchy spiky prickly woolly wooly feathered scaly wrinkly "
    "rugged polished translucent transparent reflective clear opaque glassy metallic rubbery leathery wooden woolen "
    "golden silvery earthen wet dry damp moist dusty muddy dirty clean greasy oily rusty sandy snowy icy frosty foggy "
    "misty grassy leafy bushy curly wavy frizzy spongy plush cushioned padded textured foamy bubbly "
    # patterns
    "striped spotted dotted checkered chequered floral patterned speckled plain mottled ornate embroidered "
    # colour
    "colorful colourful multicolored multicoloured multi-colored dark light bright pale deep vivid vibrant monochrome "
    "tan reddish bluish greenish yellowish brownish pinkish grayish blackish whitish neon pastel muted faded "
    "iridescent "
    # age and state
    "old new young ancient modern antique vintage retro fresh stale ripe rotten raw cooked baked fried grilled frozen "
    "broken cracked torn worn ripped burnt burned empty full open closed shut half-open sliced whole dead alive asleep "
    "awake sleepy tired sick healthy injured wounded pregnant bald bearded blind hungry thirsty naked nude bare "
    "barefoot hot cold warm cool steaming sunny cloudy rainy stormy windy overcast starry moonlit lit unlit dim busy "
    "crowded messy tidy neat cluttered abandoned ruined overgrown lush barren lonely quiet noisy loud parked steamy "
    "melted wilted withered juicy tasty delicious sweet sour bitter spicy salty creamy cheesy "
    # look and character
    "beautiful pretty cute handsome ugly lovely adorable gorgeous elegant stylish fancy simple complex intricate "
    "delicate fragile sturdy strong weak powerful fast slow quick graceful clumsy happy sad angry cheerful joyful "
    "gloomy serious calm peaceful serene scary spooky creepy eerie mysterious magical mythical majestic royal "
    "futuristic surreal abstract realistic dramatic cinematic epic heroic brave shy proud playful curious wild tame "
    "fierce gentle friendly evil wise silly funny strange weird unusual odd exotic tropical rural urban medieval "
    "gothic traditional classic oriental rustic cozy cosy comfortable comfy luxurious expensive cheap rich poor famous "
    "popular ordinary normal common rare special perfect good bad nice great amazing stunning fantastic wonderful "
    "excellent attractive sexy athletic muscular fit elderly middle-aged teenage adult male female human wealthy "
    "homeless furious grumpy smug scruffy ragged tattered jagged slanted tilted lopsided upright dense sparse shallow "
    "loose tight stiff flexible firm crumbly bouncy lightweight sparkly glittery distant remote electric digital "
    "electronic mechanical industrial nautical animated robotic alien african american asian chinese european french "
    "german italian japanese mexican indian english spanish korean british russian greek roman egyptian persian "
    "victorian siamese arabian turkish thai dutch "
    # what is seen rather than done
    "glowing shining sparkling glittering shimmering gleaming smiling frowning burning blooming melting flaming "
    "blazing blinking crying laughing grinning crumbling rotting fading rusting snarling"
)

ADJECTIVE_OR_NOUN = _words(
    "square light cold giant antique adult human male female alien miniature oval spiral plain round teardrop wild "
    "sweet young old classic mini french german chinese japanese english italian diagonal silver plush dark retro "
    "short cool fit vintage flat good fat rich poor homeless elderly chubby nude african american asian"
)
"""Adjectives that can head a phrase: "the light", "a cold"."""

NOUNS = _words(
    # nouns that end like adjectives
    "city baby lady puppy kitty bunny pony toy boy body berry cherry strawberry blueberry raspberry party story family "
    "factory library battery country county century history military army navy key monkey donkey turkey honey money "
    "valley alley jersey hockey trolley chimney journey kidney butterfly fly sky day birthday holiday sunday ferry "
    "jelly belly candy sherry tray highway subway hallway doorway runway railway driveway play clay bay ray spray "
    "display balcony lobby gallery bakery grocery canopy pastry cemetery ivy lily daisy poppy penny lorry buggy "
    "shopping curry gravy whiskey brandy jewelry pottery stationery scenery machinery cutlery laundry pantry entry "
    "tapestry embroidery fairy mommy daddy granny grandaddy buddy hobby copy bowtie academy energy cavalry animal "
    "metal crystal hospital festival cathedral terminal meal petal pedal mural cereal medal signal journal capital "
    "canal general criminal rental portal admiral manual mammal seal coal goal sandal arsenal jackal cardinal music "
    "picnic fabric traffic attic clinic mosaic magic mechanic topic comic garlic relic logic building ceiling painting "
    "drawing king ring wing string clothing evening morning wedding swing spring thing sibling duckling pudding "
    "earring lighting railing bedding frosting icing topping dressing stocking crossing cutting dining ironing parking "
    "frying boxing sewing bowling skating skiing surfing fishing camping hiking racing gaming cooking baking wrestling "
    "cycling landing writing covering opening siding awning filling stuffing carving engraving housing bearing "
    "belonging setting dragonfly firefly assembly dolly holly bully gully ally viewing vikings viking dumpling herring "
    "seedling gosling inkling piping flooring plating coating roofing paving tubing rigging bunting grating offering "
    "bed shed seed weed seaweed sled reed feed speed breed hundred watershed flatbed tweed steed deed need bobsled "
    "fish dish radish polish goldfish starfish jellyfish swordfish catfish finish rubbish crayfish shellfish varnish "
    "handful mouthful cupful spoonful student president parent tent client agent event accent resident tangent "
    "crescent serpent elephant plant restaurant merchant infant pageant servant pheasant ant pant croissant accountant "
    "assistant olive hive archive dive drive detective table vegetable cable stable timetable turntable musician "
    "pedestrian guardian politician librarian magician technician physician historian comedian equestrian custodian "
    "barbarian martian amphibian dalmatian bible mandible locomotive captive people children men women person child "
    "police cattle sheep deer gladiolus glasses"
)
"""Nouns that end like adjectives or participles."""

VERBS = _words(
    "sits stands runs walks lies lays rests sleeps eats drinks holds wears carries rides drives flies jumps plays "
    "watches stares gazes faces leans hangs swims floats sails climbs falls rises grows shines glows burns reads "
    "writes paints draws cooks cuts pours throws catches kicks hits pulls pushes chases follows leads surrounds covers "
    "fills contains features shows displays depicts includes has have had does do did makes goes comes gets takes "
    "gives brings puts keeps lets waits works talks speaks sings dances smiles laughs cries waves points reaches "
    "crosses passes enters leaves overlooks reflects towers stretches sat stood ran walked lay slept ate drank held "
    "wore rode drove flew swam hung fell rose grew shone drew threw caught led kept came went took gave brought spoke "
    "sang can could will would shall should may might must want wants perches peeks poses hovers crawls crouches "
    "kneels bends licks chews bites barks hides emerges dominates illuminates lights lines blooms casts creates adds "
    "roams grazes prowls soars glides drifts gallops trots stalks guards hugs kisses touches sells buys sees hears "
    "smells tastes wanders explores fights meets serves offers uses shoots spins bounces rolls"
)
"""Finite verbs of captions, as they follow a noun."""

SINGULAR_COPULAS = _words("is was looks seems appears becomes turns remains stays feels gets isn't wasn't")
PLURAL_COPULAS = _words("are were be been being look seem appear become became remain stay feel aren't weren't am")
COPULAS = SINGULAR_COPULAS | PLURAL_COPULAS
NEGATED_COPULAS = _words("isn't wasn't aren't weren't doesn't don't didn't isnt arent can't won't cannot couldn't")

DETERMINERS = _words(
    "a an the this these those my your his her its our their some any each every another both all no either one two "
    "three four five six seven eight nine ten eleven twelve twenty thirty fifty hundred thousand dozen dozens several "
    "many few various multiple numerous more most other others same such own certain different first second third last "
    "next single left right upper lower top bottom front rear middle center main only whole entire"
)

PREPOSITIONS = _words(
    "of in on at by for with without from to into onto over under above below behind beside besides between among near "
    "inside outside around across along through against toward towards beneath underneath atop upon within off out up "
    "down past after before during until via per like as than about amid amidst alongside beyond while when where if "
    "because since next-to away together here there back forward backward upside indoors outdoors then just also too"
)

PRONOUNS = _words("i you he she it we they me him us them himself herself itself themselves who's there's it's nothing")
RELATIVES = _words("that which who")
CONJUNCTIONS = _words("and or but nor & plus yet")
ADVERBS = _words(
    "very really quite so rather somewhat almost nearly even still always often slightly extra super ultra mostly "
    "partly half less too more most only extremely highly fully simply truly wholly newly incredibly terribly visibly "
    "softly mildly fairly otherwise"
)
