"""Word lists: characters, places, things. Every entry is written for this generator."""

from __future__ import annotations

FEMALE_NAMES = (
    "Mila Lily Rosa Nora Ella Ivy Ruby Clara Daisy Hazel Luna Maya Zoe Emma Lena Tessa Wren Poppy Olive Fern "
    "Greta Hanna Willow Penny Molly Sadie Bella Cleo Dora Elsie Freya Juno Kira Lottie Mina Nell Opal Pearl"
).split()
MALE_NAMES = (
    "Tom Ben Max Leo Finn Oscar Hugo Milo Otto Toby Sam Jack Theo Felix Jasper Rowan Basil Bruno Casper Dexter "
    "Eddie Frank Gus Henry Igor Jonah Kip Louie Marlow Ned Oliver Pip Quinn Remy Silas Tim Victor Walter"
).split()

ANIMALS = (
    "fox rabbit bear mouse hedgehog squirrel otter badger deer duck frog cat dog lamb turtle goat pony beaver mole "
    "penguin elephant lion monkey pig donkey raccoon panda tiger wolf hen sparrow owl "
    "dragon robot giraffe zebra cow horse snail seal parrot camel gnome knight"
).split()
SWIMMERS = frozenset("otter duck frog turtle beaver penguin".split())
CHILDREN = {"f": "girl", "m": "boy"}

ADJECTIVES = (
    "little small young curious kind brave shy cheerful clever gentle quiet playful friendly merry lively "
    "stubborn dreamy patient busy silly"
).split()

LOOKS = (
    "bright eyes", "a soft voice", "a warm smile", "a loud laugh", "a big heart", "quick feet", "a head full of ideas",
    "a small red scarf", "a blue bag with many pockets", "a round belly", "shiny black eyes", "a little wooden flute",
)
HOBBIES = (
    "looking at the clouds", "picking berries", "collecting smooth stones", "singing in the morning",
    "running in the grass", "listening to old tales", "watching the stars", "helping in the kitchen",
    "drawing pictures in the sand", "climbing on fallen trees", "telling jokes", "jumping over puddles",
    "making crowns of flowers", "counting the birds", "baking sweet bread", "building little towers",
)

HOMES = (
    "in a small house by the river", "at the edge of a quiet forest", "on a green hill", "in a village near the sea",
    "under a tall oak tree", "in a cozy cottage with a red door", "near a deep blue lake", "on a farm with a white fence",
    "in a sunny valley", "at the foot of a great mountain", "beside an old stone bridge", "in a garden full of roses",
    "on a small island", "at the end of a long road", "behind the old windmill", "in a hollow log near the stream",
)
DAYS = (
    "one sunny morning", "one windy day", "one cold afternoon", "one rainy morning", "one bright spring day",
    "one warm summer evening", "one quiet day", "one gray morning", "on a fine autumn day", "early one morning",
    "one snowy day", "late one afternoon", "on the first day of spring", "one Sunday morning", "one misty morning",
)
ELDERS = (
    ("the old owl", "she"), ("grandmother", "she"), ("grandfather", "he"), ("the wise turtle", "he"), ("the baker", "he"),
    ("the miller", "he"), ("old Mrs. Plum", "she"), ("the gardener", "she"), ("the kind old goose", "she"),
    ("the blacksmith", "he"), ("old Mr. Reed", "he"), ("the fisherman", "he"), ("the gray badger", "he"),
    ("the teacher", "she"), ("the carpenter", "he"), ("the shepherd", "she"), ("the old crow", "he"),
)
COLORS = "red blue green yellow white orange purple pink brown silver".split()

# name: what it is made of, what the owner does with it, what is heard or seen
WISHES = {
    "kite": ("two thin sticks, some paper and a long string", "flew it from the top of the hill", "it danced high in the wind"),
    "drum": ("an old pot and a piece of leather", "played it in the yard", "everyone clapped to the beat"),
    "boat": ("a piece of bark and a big leaf", "let it float down the stream", "it sailed past the ducks"),
    "lantern": ("a glass jar and a small candle", "carried it along the dark path", "it shone like a tiny moon"),
    "swing": ("a strong rope and a smooth board", "went up and down under the oak tree", "the leaves seemed to wave"),
    "flute": ("a hollow reed", "played it at sunset", "even the birds stopped to listen"),
    "hat": ("dry grass and a wide ribbon", "wore it all day long", "the sun could not burn anyone's nose"),
    "sled": ("two flat boards and a rope", "rode it down the long slope", "the snow sparkled all around"),
    "wagon": ("a wooden box and four round wheels", "filled it with apples", "the wheels sang on the road"),
    "blanket": ("soft wool from the sheep", "slept under it that night", "no cold wind could come in"),
    "basket": ("thin branches from the willow", "filled it with berries", "it smelled of summer"),
    "scarf": ("a ball of thick yarn", "wore it in the wind", "it was as warm as a hug"),
    "puppet": ("an old sock and two buttons", "made it talk and dance", "everyone laughed until they cried"),
    "bell": ("a little brass cup and a nail", "hung it over the door", "it rang with a clear voice"),
    "mask": ("stiff paper and bright paint", "wore it at the spring party", "nobody knew who was behind it"),
    "crown": ("yellow flowers and long grass", "wore it like a queen or a king", "the bees came to look at it"),
    "telescope": ("a long tube and two bits of glass", "looked at the night sky", "the moon seemed close enough to touch"),
    "ball": ("old rags and a bit of string", "kicked it across the field", "it bounced over the fence and back"),
}

LOST = (
    "ball", "key", "button", "spoon", "scarf", "ring", "bell", "book", "hat", "coin", "whistle", "ribbon", "teapot",
    "mitten", "marble", "feather", "cup", "toy boat", "music box", "watch",
)
SEARCHED = (
    "under the bed", "behind the big oak", "by the well", "in the tall grass", "near the pond", "inside the old barn",
    "beside the fence", "among the flowers", "on top of the hill", "under the bridge", "behind the shed",
    "in the apple basket", "along the muddy path", "between the rocks", "next to the mailbox",
)

# fear: (what happens, what the friend says, what turns out)
FEARS = {
    "the dark": ("the sun went down and every corner turned black", "The dark is only the day with its eyes closed",
                 "there were soft stars and sleepy crickets"),
    "thunder": ("a storm came and the sky began to growl", "Thunder is just the clouds bumping their heads",
                "the storm rolled away and left a rainbow"),
    "deep water": ("the only way across was through the wide river", "Hold my hand and take one small step",
                   "the water was cool and carried them gently"),
    "high places": ("the path led over a tall and narrow bridge", "Do not look down, look at me",
                    "the view from the other side was wonderful"),
    "loud noises": ("the fair began with drums and trumpets", "Listen for the song inside the noise",
                    "the noise was really a happy tune"),
    "the old cave": ("a lamb ran into the old cave and did not come out", "We can go in together",
                     "the cave was full of glittering stones"),
    "the wind": ("the wind howled around the roof all evening", "The wind is only looking for someone to play with",
                 "it was just a loose shutter that made the noise"),
    "strangers": ("a stranger knocked at the door and asked for bread", "A stranger is a friend we have not met",
                  "the stranger told the best jokes in the land"),
}

# skill: (what went wrong, advice, what success looked like)
SKILLS = {
    "whistle": ("only air came out", "Make your lips round like a cherry", "a clear note flew across the field"),
    "dance": ("both feet went the wrong way", "Listen to the music first, then move", "every step was as light as a feather"),
    "swim": ("nothing happened but a big splash", "Breathe slowly and kick with your legs", "the water felt like an old friend"),
    "skate": ("there was a bump, and then another bump", "Bend your knees and look ahead", "the ice turned into a smooth white road"),
    "juggle": ("the apples rolled in every direction", "Begin with only one apple", "three apples went round and round"),
    "sing": ("the voice came out like a rusty gate", "Sing softly, as if to a sleeping baby", "the song was sweet and clear"),
    "read": ("the letters looked like tiny ants", "Learn one letter at a time", "the words began to tell a tale"),
    "ride a bike": ("the bike fell over with a crash", "Keep your eyes on the road and keep turning the wheels", "the bike rolled all the way to the mill"),
    "climb the tall tree": ("the first branch was too high", "Look for the small steps in the bark", "the whole valley could be seen from the top"),
    "jump rope": ("the rope got caught again and again", "Count to three and then jump", "there were twenty jumps without a stop"),
    "paint": ("the paint dripped all over the floor", "Use a small brush and a little water", "the picture looked just like the morning sky"),
    "cook soup": ("the soup tasted like old socks", "Add a little salt and a lot of time", "the whole house smelled wonderful"),
    "tie a knot": ("the rope slipped apart each time", "Over, under, and then pull it tight", "the knot held the boat in the strongest wind"),
    "knit": ("the yarn became one big mess", "Make one loop, and then the next", "a fine warm sock lay on the table"),
}

# trapped animal: (where, how it was freed, gift)
RESCUES = (
    ("bird", "caught in a net", "cut the net with a sharp stone", "a blue feather"),
    ("kitten", "stuck high in a tree", "leaned a long ladder against the trunk", "a soft purr every evening"),
    ("hedgehog", "trapped in a deep hole", "pushed a long branch into the hole", "a pile of sweet berries"),
    ("lamb", "stuck in the cold mud", "pulled with a rope until the mud let go", "a bit of white wool"),
    ("fish", "caught in a small puddle", "carried it in a bucket to the river", "a shining pearl"),
    ("butterfly", "stuck in a spider web", "broke the sticky threads one by one", "a dance in the sunlight"),
    ("duckling", "lost among the tall reeds", "followed the tiny voice step by step", "a happy quack"),
    ("mouse", "shut in an old box", "bit and scratched at the lid", "a golden grain of wheat"),
    ("beetle", "lying helpless on its back", "turned it over with a leaf", "a little song"),
    ("puppy", "tied to a broken fence", "opened the tight knot", "a wet kiss on the nose"),
)
# plant: what it gives, what is made of it
PLANTS = {
    "sunflower": ("hundreds of seeds", "gave the seeds to the birds"), "pumpkin": ("one giant pumpkin", "cooked a big pot of soup"),
    "apple tree": ("a basket of red apples", "baked three apple pies"), "bean": ("long green beans", "made a fine dinner"),
    "strawberry": ("a bowl of sweet strawberries", "made a jar of jam"), "carrot": ("a row of crisp carrots", "made a huge salad"),
    "rose": ("the sweetest red roses", "tied a bunch for every neighbor"), "melon": ("a melon as big as a barrel", "cut a slice for everyone"),
    "potato": ("a whole sack of potatoes", "roasted them over a fire"), "cherry tree": ("a hat full of cherries", "baked a cherry cake"),
}
GOALS = (
    ("the sea", "waves rolled in and out, and shells shone in the sand"), ("the top of the mountain", "the whole world lay below like a map"),
    ("the big city", "lights blinked in a thousand windows"), ("the waterfall", "the water fell like silver hair"),
    ("the end of the rainbow", "the grass there was bright with every color"), ("the lighthouse", "its lamp turned slowly over the waves"),
    ("the hidden lake", "the water was as still as a mirror"), ("the winter fair", "there was music, and the smell of warm cake"),
)
TREATS = "cake,apple pie,honey bread,berry soup,pancakes,warm milk,cherry pie,ginger cookies,hot cocoa,nut bread".split(",")
