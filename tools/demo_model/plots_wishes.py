"""Plots that begin with a wish: a thing, a skill, a garden, a journey, a party."""

from __future__ import annotations

import random

import words
from plot import Facts, Plot


def _wish(rng: random.Random, facts: Facts) -> None:
    facts["thing"] = rng.choice(list(words.WISHES))
    facts["parts"], facts["use"], facts["effect"] = words.WISHES[facts["thing"]]
    facts["color"] = rng.choice(words.COLORS)


WISH = Plot(
    theme=("who wants a <thing>", "who wishes for a <thing>", "who makes a <thing>", "and a <thing>"),
    topics=("a <thing>", "making things", "a wish"),
    choose=_wish,
    beats=(
        ("<N> wanted {a <thing>|a <color> <thing>} more than {anything else|anything in the world}.",
         "{For weeks|Every night|All winter}, <N> {dreamed|had dreamed} of {having a|a} <color> <thing>.",
         "There was only one thing that <N> wished for: a <thing>{, a <color> one| of <his> own|}.",
         "<Day>, <he> saw a {child|traveler} with a {fine|shiny|beautiful} <thing>, and <he> wanted one too."),
        ("But a <thing> cost {ten|five|seven|twenty} coins at the market, and <his> {pockets were|purse was} empty.",
         "{Sadly|But}, there was no <thing> to be found in the whole {village|valley}.",
         "\"{Where could I get one|How can I ever get one}?\" <he> {asked|wondered}{ again and again|}.",
         "<He> looked in {every shop|the old attic|all the cupboards}, but {there was none|<he> found nothing but dust}."),
        ("First, <he> tried to {make|build} one {alone|without any help}, but it {fell apart|broke} {in <his> hands|at once|before lunch}.",
         "<He> worked {all morning|until noon} and made {one|something} that {looked|was} {more like a potato|very crooked|far too small}. It {broke|fell to pieces} {quickly|right away}.",
         "So <he> tried to buy it with {a bag of acorns|three shiny stones|a handful of nuts}, but the {seller|shopkeeper} {only laughed|shook his head}.",
         "<His> first try {went wrong|was a mess}, and {so did the second|the second one was no better}."),
        ("<N> sat down {on a stone|by the door|on the step} and {sighed|felt like crying|was close to tears}.",
         "\"I will never have one,\" {said <N>|<he> said}{ in a small voice| sadly|}.", "", "<He> felt {sad|very sad|tired and sad}."),
        ("Then <his> friend <F>, a <fadj> <fkind>, {came by|walked past|looked over the fence}. \"{Why are you so sad|What is wrong}?\" {asked <F>|<fhe> asked}.",
         "<F> the <fkind> {heard|saw} this and {came closer|sat down too}. \"{Tell me what is wrong|Can I help you}?\" <fhe> {said|asked}{ kindly|}.",
         "Just then a <fkind> {called|named} <F> {came along|came down the road}. \"Maybe I can help,\" said <F>{ with a smile|}."),
        ("\"{All you need is|We only need} <parts>,\" {said|explained} <F>. \"{Let us look for them|I know where to find them}{ together|}!\"",
         "\"I know how to make {it|one},\" said <F>. \"We {need|must find} <parts>.\"",
         "<F> {thought for a while|scratched <fhis> head}. \"{With|If we had} <parts>, we {can|could} make one {ourselves|together}!\""),
        ("They {looked|searched} {all over|everywhere} and {found|collected} what they needed. {Then they|Together they} {cut and tied|worked and sang} {until evening|until it was done|all afternoon}.",
         "The two {friends|of them} {ran|went} from {house to house|door to door} and {asked|begged} politely. {By evening|Before dark}, {everything was there|they had it all}.",
         "{Step by step|Bit by bit}, {the <thing> took shape|a real <thing> grew under their hands}. <N> even {painted|colored} it <color>.",
         "{It was not easy|It took a long time}, but {two can do more than one|they did not give up}. At last the <thing> was {ready|finished}."),
        ("{Happily|Proudly|With great joy}, <N> <use>, and <effect>.", "The next {day|morning}, <he> <use>, and <effect>.",
         "<N> <use>. {Look|Just see}, <effect>!", "\"It is {perfect|even better than I dreamed}!\" {cried|shouted} <N>. <He> <use>, and <effect>."),
        ("<He> {let <F> have a turn too|shared it with <F>|took turns with <F>}{, because good things are better when shared|}.",
         "\"This is {our|yours and my} <thing>,\" <he> {said to|told} <F>. \"We made it together.\"", "",
         "<F> {smiled|laughed} and {said|answered}, \"{See|You see}? {We did it|It was not so hard}!\""),
    ),
    summary=("<N> the <kind> wanted a <thing>. At first it did not work, but <F> helped, and they made one together.",
             "It is about a <kind> called <N> who wished for a <thing> and made it with <his> friend <F>."),
    questions=(
        (("What did <N> want?", "What did the <kind> wish for?", "What was the wish?"), ("<N> wanted a <thing>.", "A <thing>. It was <his> biggest wish.")),
        (("What was the <thing> made of?", "How did they make the <thing>?", "What did they need?"), ("They made it from <parts>.", "They needed <parts>.")),
        (("What happened in the end?", "How did it end?", "How does the story end?"), ("In the end, <N> <use>, and <effect>.",)),
    ),
    moral=("{Good friends make good work|Many hands make light work}.", "What you make {together|with a friend} is {worth more than gold|the finest thing of all}.",
           "A wish comes true {sooner|faster} when {a friend helps|two people work on it}."),
)


def _skill(rng: random.Random, facts: Facts) -> None:
    skills = [skill for skill in words.SKILLS if skill != "swim" or facts["kind"] not in words.SWIMMERS]
    facts["skill"] = rng.choice(skills)
    facts["fail"], facts["advice"], facts["success"] = words.SKILLS[facts["skill"]]


SKILL = Plot(
    theme=("who learns to <skill>", "who wants to <skill>", "who cannot <skill>", "who tries to <skill>"),
    topics=("learning something new", "not giving up", "practice"),
    choose=_skill,
    beats=(
        ("<N> wanted to learn to <skill>.", "All of <his> friends could <skill>, but <N> could not.",
         "There was one thing <N> could not do. <He> could not <skill>.", "<Day>, <N> {decided|made up <his> mind} to learn to <skill>."),
        ("<He> {tried|gave it a try}, but <fail>.", "The first time, <fail>. {The second time was just as bad|It was the same the second time}.",
         "{So <he> began at once|<He> started right away}, but <fail>.", "<He> {took a deep breath|closed <his> eyes} and tried. {Oh dear|Oh no}, <fail>!"),
        ("Some {crows|children|geese} {saw it|were watching} and {laughed|giggled}. <N> {turned|went} red and {ran away|hid behind a bush}.",
         "\"I am {too small|too silly|no good} for this,\" <he> {cried|said}.", "<He> {kicked a stone|stamped <his> foot} and {wanted|was ready} to give up.", ""),
        ("<F>, a <fadj> <fkind>, {was watching|had seen it all}. \"{Do not give up|Nobody can do it at first},\" said <F>. \"<advice>.\"",
         "That evening, <he> {met|visited} <his> friend <F>, {a <fkind> who could do it well|a <fadj> <fkind>}. \"{I will tell you a secret|Here is my trick},\" said <F>. \"<advice>.\"",
         "Then a <fkind> {called|named} <F> {came over|sat down next to <him>}. \"I had the same trouble once,\" <fhe> said. \"<advice>.\""),
        ("<N> {listened|nodded} and {tried again|gave it another try}. It was {a little|a bit} better.", "\"{Really|Is that all}?\" asked <N>. \"That is all,\" {said|answered} <F>. \"{And practice|Try it every day}.\"",
         "<N> was not sure, but <he> {promised|agreed} to try {it|once more}.", ""),
        ("So <he> {practiced|tried} {every morning|each day} before breakfast, {in sun and in rain|even when it rained}. <F> {came along|stayed close} and {cheered|counted}.",
         "{Day after day|For a whole week}, they {practiced|worked} {behind the house|in the meadow|where nobody could see them}.",
         "They {practiced|kept trying} until the moon came up. {Sometimes it went well, sometimes not|There were bumps and there were laughs}."),
        ("{Then it happened|And then, all at once, it worked}: <success>!", "{At last|Finally}, {one fine day|after the hundredth try}, <success>.",
         "And {what do you think|guess what}? {On the seventh day|At the end of the week}, <success>."),
        ("\"{I did it|I can do it}!\" {shouted|cried} <N>, and <he> {hugged <F>|jumped for joy|laughed out loud}.", "Even those who had laughed now {clapped|cheered}.",
         "<F> was {so proud|as proud as a king}. \"I knew you could <skill>,\" <fhe> said.", "<N> {thanked|hugged} <F> {with all <his> heart|three times|again and again}."),
        ("The {next week|following day}, <N> {showed|taught} a {little mouse|small child|young duck} how to <skill>. \"{It is easy|Do not worry},\" <he> said. \"You only have to {keep trying|practice}.\"", "",
         "From {then on|that day on}, <he> did it {every day|whenever <he> was happy}."),
    ),
    summary=("<N> the <kind> could not <skill>. <F> gave good advice, and after much practice it worked.",
             "It tells of a <kind> named <N> who learned to <skill> with the help of <F>."),
    questions=(
        (("What did <N> want to learn?", "What did <N> learn?", "What could <N> not do?"), ("<N> wanted to learn to <skill>.", "<He> learned to <skill>.")),
        (("What was the advice?", "What did <F> say?", "What tip did <F> give?"), ("<F> said, \"<advice>.\"", "The advice was: \"<advice>.\"")),
        (("What happened in the end?", "How did it end?", "Did it work?"), ("Yes, after a lot of practice it worked: <success>.", "In the end it went well, and <success>.")),
    ),
    moral=("{Practice makes perfect|Nobody is born a master}.", "If you {keep trying|do not give up}, you will {get there|learn it} {in the end|one day}.",
           "Every {master|expert} was once a beginner."),
)


def _garden(rng: random.Random, facts: Facts) -> None:
    facts["plant"] = rng.choice(list(words.PLANTS))
    facts["harvest"], facts["made"] = words.PLANTS[facts["plant"]]
    facts["G"], facts["ghe"] = rng.choice(words.ELDERS)


GARDEN = Plot(
    theme=("who plants a <plant> seed", "who grows a <plant>", "and a tiny seed", "who has a garden"),
    topics=("a garden", "patience", "a seed", "a <plant>"),
    choose=_garden,
    beats=(
        ("<Day>, <N> found a {tiny|small|strange} seed {on the path|in an old pocket|under a leaf}.", "<Day>, <G> gave <N> a {tiny|small brown|round} seed.",
         "<Day>, a {bird|gust of wind} dropped a {tiny|little} seed {at <his> feet|right on <his> nose}."),
        ("\"{What is it|What will it be}?\" {asked|wondered} <N>. \"{Plant it and you will see|Wait and see},\" said <G>{ with a wink|}.",
         "<N> {showed|carried} it to <G>. \"{That is a <plant> seed|It is a <plant>},\" <ghe> said. \"It needs {earth, water and time|sun, rain and patience}.\""),
        ("<N> {dug|made} a {little|deep} hole, put the seed inside and {gave it water|covered it with soft earth}.", "So <he> planted it {behind the house|in the best spot of the garden|next to the gate} and {watered it|sang to it} {every day|each morning}."),
        ("The next {morning|day}, <he> ran out to look, but there was nothing {to see|but brown earth}.", "<He> {sat down|waited} and {watched|stared at} the ground. Nothing happened{ that day|, not even a little|}.",
         "{One day|Two days} went by, then {another|three more}. {Nothing came up|The ground stayed bare}."),
        ("\"{Grow|Come out}!\" <he> {shouted|called}, but {a seed has no ears|the seed did not listen}.", "<He> {wanted|tried} to dig it up {again|to take a look}, but <F> the <fkind> {stopped <him>|shook <fhis> head}. \"{Give it time|Good things take time},\" said <F>.",
         "<N> was {cross|very impatient}. \"It is {broken|a bad seed},\" <he> {grumbled|told <his> friend <F>, the <fkind>}. <F> {only smiled|laughed}. \"{Wait a little longer|You must wait},\" <fhe> said."),
        ("{Then the rain came|It rained for three days}, and {after that|then} the sun {shone|smiled}. One {morning|day} a {green tip|tiny leaf} {looked out of|peeped from} the earth!",
         "{After two weeks|When <he> had almost forgotten it}, a {small|thin} green {shoot|leaf} {stood there|came up}. <N> {danced for joy|could hardly believe it}."),
        ("It grew {taller|bigger} {every day|week after week}, {until it was taller than the gate|and soon bees came to visit}.", "<N> {pulled the weeds|kept the snails away}, and <F> {carried the water|helped with the heavy can}.",
         "One night a {storm|strong wind} came. {Quickly|In the rain}, <N> and <F> tied the plant to a {stick|pole}, and it {held|was saved}.", ""),
        ("{In the fall|At the end of summer|When the time was right}, {they picked|it gave them|they carried home} <harvest>!", "{At last|Finally}, the little seed had become <harvest>."),
        ("<N> and <F> <made>, and {everyone|the whole village} was {invited|happy}.", "Together they <made>. {Nothing had ever tasted so good|It was a happy day for everyone}.",
         "\"{The waiting was worth it|I am glad that we waited},\" said <N>. {And so|That day} they <made>."),
        ("<N> kept {one seed|one little seed} {for the next spring|in a box}.", "", "<G> {laughed|nodded}. \"{You see|Well done}, {patience is a good gardener|you are a real gardener now},\" <ghe> said."),
    ),
    summary=("<N> the <kind> planted a seed and had to wait for a long time. In the end it gave <harvest>.", "It is about a <kind> named <N> who grew a <plant> and learned to wait."),
    questions=(
        (("What did <N> plant?", "What grew from the seed?", "What was the seed?"), ("It was a <plant> seed.", "<N> planted a <plant>.")),
        (("What did they do with it?", "What did they do in the end?", "How did it end?"), ("They got <harvest>, and <N> and <F> <made>.",)),
        (("What did <N> learn?", "What was hard for <N>?"), ("<N> learned to wait.", "Waiting was hard, but <he> learned to be patient.")),
    ),
    moral=("Good things take time.", "{Patience|Waiting} {is hard|is not easy}, but {it bears sweet fruit|it pays in the end}.", "{Care|Love} and time make {small things|everything} grow."),
)


def _journey(rng: random.Random, facts: Facts) -> None:
    facts["goal"], facts["sight"] = rng.choice(words.GOALS)
    facts["treat"] = rng.choice(words.TREATS)
    facts["G"], facts["ghe"] = rng.choice(words.ELDERS)


JOURNEY = Plot(
    theme=("who travels to <goal>", "who wants to see <goal>", "on a long journey", "who goes on an adventure"),
    topics=("a journey", "an adventure", "<goal>", "travel"),
    choose=_journey,
    beats=(
        ("<N> had never {seen|been to} <goal>. <Day>, <he> {decided to go|made up <his> mind to go} there.", "<G> often {told|spoke} about <goal>, and <N> {wanted|longed} to see it{ with <his> own eyes|}.",
         "<Day>, <N> said, \"{Today|Now} I {will go|am going} to see <goal>!\""),
        ("<He> packed {some <treat>|a piece of cheese|two apples} and {a map|a warm coat} and {set off|started walking}.", "<N> {filled|took} a bag with <treat> and {waved goodbye|walked out of the gate}.", "With {a stick|a small bag} and a song, <he> {set out|went on <his> way}."),
        ("On the {road|way}, <he> met <F>, a <fadj> <fkind>. \"{Where are you going|What are you looking for}?\" asked <F>. \"{To|I am going to} <goal>,\" said <N>. \"{May I|Can I} come too?\" \"{Of course|Yes, please}!\"",
         "Behind the first {hill|bend} sat a <fkind> {called|named} <F>, {all alone|looking bored}. \"{Will you come with me|Would you like to come along}?\" asked <N>, and {so there were two|<F> jumped up at once}."),
        ("Soon they came to a {wide river|deep stream}, and the bridge was {gone|broken}.", "{After an hour|At noon}, a {huge tree|big rock} {blocked|lay across} the {road|path}.", "The path {went|led} into a {dark|thick} forest, and {they lost their way|soon they did not know where they were}."),
        ("<N> wanted to {turn back|go home}, but <F> had an idea. \"{Follow me|I know what to do},\" <fhe> said, and {slowly|step by step} they {got past it|found a way}.",
         "\"{What now|What shall we do}?\" asked <F>. <N> {thought hard|looked around}. \"{If we help each other|Together}, we can do it!\" {And they did|And so they could}.",
         "They {asked|called} an old {heron|goat} for help. \"{Go around by the mill|Take the path with the white stones},\" it said, and that {was right|helped}."),
        ("When night came, they {slept|rested} under {the stars|a tree} and shared the {food|last bit of <treat>}.", "{It began to rain|Then a cold wind blew}, and {they were|both were} {tired|hungry}. {But they sang to keep warm|\"Only a little farther,\" said <F>}.", ""),
        ("{In the morning|The next day|At last}, they {reached|stood before} <goal>. <sight>.", "And {then|suddenly}, there it was! <sight>. {It was <goal>|They had reached <goal>}."),
        ("\"{It is more beautiful than I thought|I have never seen anything like it},\" {whispered|said} <N>.", "{For a long time|For a while}, {nobody|neither of them} said a word.", "They {laughed|danced} and {stayed|played} until {sunset|evening}."),
        ("Then they walked home, and <N> {told everyone about it|had a lot to tell}. But the best {thing|part} {was|of all was} {the friend <he> had found|that <he> had not gone alone}.",
         "On the way back, <N> said, \"{I wanted to see <goal>|I looked for a place}, but I found a friend.\"", "{When they came home|Back at home}, {they were tired and happy|<G> was waiting with hot soup}. \"{Well|So}, how was it?\" \"{Wonderful|Far, but wonderful},\" {they said|said <N>}."),
    ),
    summary=("<N> the <kind> wanted to see <goal>. On the way <he> met <F>, and together they got there.", "It is about a journey of a <kind> named <N> to <goal>, and a new friend on the road."),
    questions=(
        (("Where did they go?", "Where did <N> go?", "What did <N> want to see?"), ("<N> went to see <goal>.", "They went to <goal>.")),
        (("Who did <N> meet?", "Who came along?", "Who went with <N>?"), ("<F>, a <fkind>, came along.", "<N> met a <fkind> called <F>.")),
        (("How did it end?", "What happened in the end?", "What did they see there?"), ("They reached <goal>. <sight>.",)),
    ),
    moral=("{The best part of a journey is the company|A road is short with a friend}.", "{Even a long way|Every journey} begins with {one small step|a first step}."),
)


def _party(rng: random.Random, facts: Facts) -> None:
    facts["treat"] = rng.choice(words.TREATS)
    facts["thing"] = rng.choice(list(words.WISHES))
    facts["G"], facts["ghe"] = rng.choice(words.ELDERS)


PARTY = Plot(
    theme=("who has a birthday", "who thinks everyone forgot <his> birthday", "and a surprise party"),
    topics=("a birthday", "a surprise", "a party"),
    choose=_party,
    beats=(
        ("{One day|One morning|On a fine morning}, <N> woke up {very early|with a smile|before the sun}. It was <his> birthday!", "It was the birthday of <N>, and <he> {could hardly wait|jumped out of bed}."),
        ("<He> {ran|went} to <F>, <his> friend, a <fadj> <fkind>. \"{Do you know what day it is|Guess what day it is}?\" <he> asked. \"{Washing day|A Tuesday, I think},\" said <F> and {closed the door|hurried away}.",
         "First <he> {met|visited} <F> the <fkind>. But <F> only said, \"{I have no time|Sorry, I am busy today},\" and {ran off|walked on}."),
        ("Then <he> {asked|met} <G>, but <ghe> {was in a hurry too|only said, \"{Good morning|Hello}\"}.", "<G> {looked the other way|was carrying a big box} and {did not say a word|had no time to talk}.", "At the {market|pond|mill}, {nobody looked up|no one said a thing} either."),
        ("\"{They have all forgotten|Nobody remembers my birthday},\" {thought|whispered} <N>, and a tear {fell|rolled} {on the ground|down <his> face}.", "<N> felt {very lonely|as small as an ant}. \"{Nobody remembers|They forgot me},\" <he> said."),
        ("<He> {walked|wandered} {by the river|through the fields} all {day|afternoon} and {threw stones into the water|talked to the clouds}.", "", "So <he> sat {on a log|under a tree} and {ate a dry piece of bread|sang a sad little song} all alone."),
        ("When {it got dark|the sun went down}, <he> {went|walked slowly} home. The house was {dark|quiet}. <He> opened the door {slowly|with a sigh}...", "In the evening, <he> came home {tired and sad|with heavy steps}. {Strange|How odd}, there was a {noise|light} {inside|behind the door}."),
        ("\"Surprise!\" {shouted|cried} {everyone|many voices}. {There stood|There were} <F> and <G> and all the {others|neighbors}, with {candles|paper stars} and <treat>!", "Suddenly, {the lights went on|a hundred candles shone}. \"Happy birthday!\" {they all sang|called <F> and all the others}. On the table {stood|was} <treat>."),
        ("\"{We wanted it to be a secret|We have been working on this all week},\" {said|explained} <F>. \"{That is why we ran away|I almost told you}!\"", "\"You {did not forget|remembered}!\" said <N>. \"{How could we forget you|We could never forget you},\" {laughed|said} <F>."),
        ("<F> gave <him> a {small box|big parcel}. Inside was a <thing>, {the very thing <he> had wished for|made by <F> <fhim>self}.", "There was also a {present|gift}: a {fine|bright} new <thing>."),
        ("They {danced|played} and ate until {midnight|the moon was high}. It was the best birthday {of all|<he> ever had}.", "<N> {laughed so much|was so happy} that {<his> cheeks hurt|<he> forgot all the tears}."),
    ),
    summary=("<N> the <kind> thought that everyone had forgotten <his> birthday, but <F> and the others had made a surprise party.",),
    questions=(
        (("Why was <N> sad?", "Why was the <kind> sad?"), ("<N> thought that everyone had forgotten <his> birthday.",)),
        (("What was the present?", "What did <N> get?", "What was the gift?"), ("<N> got a <thing>.", "The present was a <thing>.")),
        (("How did it end?", "What happened in the end?"), ("It ended with a surprise party and <treat>.", "<F> and the others gave <N> a surprise party.")),
    ),
    moral=("{True|Good} friends do not forget.", "{Sometimes|Now and then} a {closed door|secret} hides a {happy surprise|kind heart}."),
)

PLOTS = (WISH, SKILL, GARDEN, JOURNEY, PARTY)
