"""Plots about how characters treat each other: newcomers, quarrels, honesty, boasting, bedtime."""

from __future__ import annotations

import random

import words
from plot import Facts, Plot


def _elder_and_treat(rng: random.Random, facts: Facts) -> None:
    facts["G"], facts["ghe"] = rng.choice(words.ELDERS)
    facts["treat"] = rng.choice(words.TREATS)


def _toy(rng: random.Random, facts: Facts) -> None:
    _elder_and_treat(rng, facts)
    facts["thing"], facts["color"] = rng.choice(list(words.WISHES)), rng.choice(words.COLORS)
    facts["parts"] = words.WISHES[facts["thing"]][0]


def _found(rng: random.Random, facts: Facts) -> None:
    _elder_and_treat(rng, facts)
    facts["thing"], facts["color"] = rng.choice(words.LOST), rng.choice(words.COLORS)
    facts["s1"] = rng.choice(words.SEARCHED)


NEWCOMER = Plot(
    theme=("who makes a new friend", "who is lonely", "who meets <afkind>", "and a new neighbor"),
    topics=("friendship", "a new friend", "being alone", "a new neighbor"),
    choose=_elder_and_treat,
    beats=(
        ("<N> was often {alone|lonely}. {There was nobody to play with|All the others lived far away}.", "{But|Sadly,} <N> had no friends{ in that place|}. <He> {played alone|talked to the trees}."),
        ("<Day>, <afkind> named <F> moved {into the empty house next door|in across the road}.", "<Day>, a {cart|wagon} {stopped|came}, and out {climbed|stepped} <F>, a <fadj> <fkind>. {It was a new neighbor|<Fhe> had come to stay}."),
        ("<N> wanted to say hello, but <he> was {too shy|afraid to do it}.", "\"{What if <fhe> does not like me|What should I say}?\" thought <N>{, and <he> stayed behind the curtain|}.", "<N> {looked through|peeped over} the fence, but {ran away|hid} when <F> {turned around|looked up}."),
        ("The next day, <he> {put|left} a {flower|berry} on the step of <F>, {knocked and ran|and ran away}.", "<He> {wrote a letter|drew a picture} and {tore it up again|lost it in the wind}.", "<He> {practiced in front of the mirror|talked about it with a snail}. \"Hello, I am <N>. {No, no|Oh dear}!\"", ""),
        ("<G> {saw it all|knew what to do}. \"{Take some <treat> over|Bring <fhim> some <treat>},\" <ghe> said. \"{A full mouth is never shy|That is how friendships start}.\"", "\"{Be brave|Just be yourself},\" said <G>. \"{Maybe <F> is shy too|<F> may be waiting for you}.\""),
        ("So <N> {went|walked} over with <treat> and knocked. The door opened {a little|slowly}.", "{At last|The next morning}, <N> {took a deep breath|picked some flowers} and {rang the bell|knocked on the door}."),
        ("\"{Hello|Good day}, I am <N>,\" {<he> said|said the <kind>}{ quietly|}. \"{Would you like to play|Do you want to be my friend}?\"", "\"{Welcome|Hello},\" said <N>, {and <his> ears went red|very softly}. \"I live {next door|over there}.\""),
        ("<F> {smiled|beamed}. \"{I was hoping you would come|I was too shy to ask you},\" <fhe> {said|answered}.", "\"{I thought nobody liked me|I had nobody here},\" said <F>. \"{Please come in|Come in, come in}!\""),
        ("They {ate|shared} <treat> and found out that both of them {loved|liked} <hobby>.", "{They played all day|That afternoon they played} {hide and seek|by the stream}, {and the time flew|until the stars came out}."),
        ("{From that day on|After that}, <N> was never lonely again.", "{Now|Since then}, there is a {hole|little gate} in the fence, so that they can visit {each other|at any time}.", "\"{See you tomorrow|Until tomorrow}!\" {called|said} <F> in the evening. {Those were the best words <N> had ever heard|<N> could not stop smiling}."),
    ),
    summary=("<N> the <kind> was lonely and too shy to talk to <F>, the new neighbor. Then <he> was brave and knocked, and they became friends.",),
    questions=(
        (("Who was the new neighbor?", "Who moved in?", "Who became a friend?"), ("It was <F>, a <fkind>.", "<F> the <fkind> was the new neighbor.")),
        (("Why was <N> sad?", "What was the problem?", "Why did <N> not say hello?"), ("<N> was lonely, but too shy to say hello.",)),
        (("How did it end?", "What happened in the end?"), ("<N> knocked on the door, and <he> and <F> became friends.",)),
    ),
    moral=("{Sometimes|Now and then}, one small hello is enough.", "A friend may be waiting {behind the next door|closer than you think}.", "{Who knocks first|The one who says hello first} wins a friend."),
)

QUARREL = Plot(
    theme=("who has a fight with a friend", "who quarrels about a <thing>", "who learns to share", "who says sorry"),
    topics=("sharing", "saying sorry", "a quarrel", "forgiving"),
    choose=_toy,
    beats=(
        ("<N> and <F>, a <fadj> <fkind>, were {best friends|always together}. {They did everything together|Nothing could part them}.", "<His> best friend was a <fkind> called <F>. They {had never had a fight|shared every apple}."),
        ("<Day>, they found a <color> <thing> {on the road|in the attic|by the gate}. \"{It is mine|I saw it first}!\" said <N>. \"No, {mine|me}!\" said <F>.", "<Day>, <G> gave them a <color> <thing> {to share|for both}. But {each wanted to have it first|<N> wanted it all alone}."),
        ("<N> pulled hard, <F> pulled {even harder|too}, and {crack|snap}! The <thing> {broke|was broken} in two.", "They {pulled|fought} and {pushed|shouted}, until the <thing> fell {down|on the stones} and broke."),
        ("\"{That was your fault|Look what you did}!\" {shouted|cried} <F> and {ran home|went away}.", "\"{I never want to see you again|You broke it},\" {said|cried} <N>{, and <his> face was hot|}. <F> {turned around and left|said nothing and walked away}."),
        ("<N> sat {alone|at home} with the {broken pieces|two halves}. {It was very quiet|Nothing was fun without <F>}.", "That {evening|night}, <N> could not {eat|sleep}. {A game for one is no game|<He> missed <F>}."),
        ("\"{What is more important|What do you miss more},\" asked <G>, \"the <thing> or your friend?\" <N> {knew the answer|did not have to think}.", "<G> {sat down next to <him>|gave <him> a cup of tea}. \"{Things can be mended|Glue helps with the one}, {friends too|and one word with the other},\" <ghe> said.", "<N> {thought about it|looked at the moon}. \"{I was selfish|It was my fault too},\" <he> {whispered|said}."),
        ("{In the morning|The next day}, <he> {took|got} <parts> and {worked|tried} {to fix it|to mend the <thing>}, but {two hands were not enough|it did not hold}.", "", "So <N> {went|ran} {through the rain|across the field} to the house of <F>, {but halfway there|and on the bridge} they {met|ran into each other}, because <F> {was on the way to <him>|had the same idea}."),
        ("\"{I am sorry|I am so sorry},\" said <N>. \"{I am sorry too|So am I},\" said <F>, and {both had to laugh|they hugged}.", "\"I came to say {sorry|that I am sorry},\" said <N>. <F> {smiled|nodded}. \"{Me too|I wanted to say the same}.\""),
        ("Together they {mended|fixed} the <thing>. It {had a crack now, but they liked it even more|looked almost new}.", "With <parts>, they made it whole again, {side by side|together}."),
        ("{Now|From then on}, they took turns: {one day <N>, one day <F>|first one, then the other}.", "\"You {go|try it} first,\" said <N>. \"No, you,\" said <F>. {And they laughed again|So they did it both at once}.", "They celebrated with <treat>, {cut into two equal pieces|and <N> gave <F> the bigger piece}."),
    ),
    summary=("<N> the <kind> and <F> the <fkind> had a fight about a <thing>, and it broke. They said sorry and mended it together.",),
    questions=(
        (("What was the fight about?", "Why did they fight?", "What broke?"), ("They fought about a <color> <thing>, and it broke.", "The fight was about a <thing>.")),
        (("Who were the friends?", "Who had a fight?"), ("<N> the <kind> and <F> the <fkind>.",)),
        (("How did it end?", "What happened in the end?"), ("They said sorry and mended the <thing> together.",)),
    ),
    moral=("{A friend is worth more than a <thing>|No toy is worth a friend}.", "{The hardest word is sorry|Sorry is a short word}, {but it is the best glue|but it mends a lot}.", "{Shared joy is double joy|What you share becomes twice as big}."),
)

HONEST = Plot(
    theme=("who finds a <thing>", "who finds a <color> <thing>", "who is honest", "who gives something back"),
    topics=("honesty", "telling the truth", "a <thing>", "doing the right thing"),
    choose=_found,
    beats=(
        ("<Day>, <N> found a <color> <thing> <s1>.", "<Day>, something {shone|lay} <s1>. It was a <color> <thing>, {the finest <he> had ever seen|and it was beautiful}."),
        ("\"{How lovely|What luck}!\" {said|thought} <N>. \"{Now it is mine|I will keep it}.\"", "<He> {looked left and right|looked around}. Nobody was there. So <he> put it in <his> {pocket|bag}."),
        ("At home, <he> {played with it|put it on the table} and {was happy|could not stop looking at it}.", "{All day|That day}, <he> {felt rich|was proud} and {told nobody|kept it a secret}.", ""),
        ("The next {day|morning}, <he> met <F>, a <fadj> <fkind>, who {was crying|looked very sad}. \"I {lost|have lost} {something dear to me|my <thing>},\" said <F>. \"It was {from my mother|all I had}.\"", "Then <F> the <fkind> {came along|knocked at the door}. \"{Have you seen|Did you find} my <thing>?\" <fhe> asked. \"{I have looked for it all night|It is from my grandfather}.\""),
        ("<N> felt {hot|a stone in <his> belly}. \"{No|I have not seen it},\" <he> {said|lied}, and {looked at the ground|walked quickly away}.", "<N> {opened <his> mouth|wanted to speak}, but no word came out. {It was so beautiful|<He> wanted to keep it so much}."),
        ("But that night, <he> could not sleep. The <thing> {did not look so nice anymore|seemed as heavy as a stone}.", "But {now|from then on}, the <thing> {gave <him> no joy|was no fun at all}. {<He> always saw the sad eyes of <F>|<He> kept thinking of <F>}."),
        ("\"{What is the matter|Why are you so quiet}?\" asked <G>. <N> told {<ghe2> everything|the truth}. \"{You know what to do|It is never too late},\" {said <G>|<ghe> answered}.", "\"{It does not belong to me|This is not mine},\" <he> {said to <him>self|thought}. \"I {must|will} give it back.\"", ""),
        ("{As soon as the sun was up|Early in the morning}, <N> {ran|went} to <F>. \"I {found|have} your <thing>,\" <he> said. \"I {am sorry that I lied|should have told you at once}.\"", "So <he> {took heart|was brave} and {brought|gave} the <thing> back. \"{Please forgive me|I wanted to keep it, and that was wrong},\" said <N>."),
        ("<F> {was so happy|laughed and cried}. \"{It takes courage to tell the truth|Thank you for being honest},\" <fhe> said.", "<F> {looked at <him> for a long time|was silent for a moment}. Then <fhe> smiled. \"{You came back, that is what counts|I forgive you}.\""),
        ("{They ate|Then they had} <treat> together, and <N> felt {light as a feather|better than ever}.", "That {night|evening}, <N> slept {like a baby|better than a king}.", "{And so|That is how} <N> lost a <thing> and {won|found} a friend."),
    ),
    summary=("<N> the <kind> found a <color> <thing> and wanted to keep it. But it belonged to <F>, and so <he> gave it back.",),
    questions=(
        (("What did <N> find?", "What was found?"), ("<N> found a <color> <thing>.", "<He> found a <color> <thing> <s1>.")),
        (("Who did it belong to?", "Whose <thing> was it?", "Who lost the <thing>?"), ("It belonged to <F>.", "The <thing> belonged to <F> the <fkind>.")),
        (("How did it end?", "What happened in the end?", "Did <N> keep it?"), ("<N> did not keep it. <He> gave the <thing> back to <F>.",)),
    ),
    moral=("{Honesty|The truth} {makes the heart light|is the best pillow}.", "It is never too late to {do the right thing|tell the truth}."),
)

BEDTIME = Plot(
    theme=("who cannot sleep", "who does not want to sleep", "at bedtime", "and the moon"),
    topics=("bedtime", "sleep", "the moon", "the night"),
    choose=_elder_and_treat,
    beats=(
        ("One night, <N> could not sleep.", "It was late, and {all the lights were out|the stars were bright}, but <N> was wide awake.", "One evening, <N> {lay|was} in bed and {looked at the ceiling|was not tired at all}."),
        ("<He> {turned left, then right|turned the pillow over}. {It did not help|It was no use}.", "<He> counted {sheep|the stars}. {At fifty, they all ran away|At a hundred, <he> was still awake}."),
        ("So <he> {got up|put on a coat} and {went|tiptoed} outside. The moon {hung over the trees|was big and round}.", "<He> {climbed out of bed|opened the window}. The night {smelled of grass|was warm and still}."),
        ("There sat <F>, a <fadj> <fkind>. \"{Can you not sleep either|Why are you still awake}?\" asked <F>. \"{No|My head is too full},\" {said|answered} <N>.", "\"{Who is there|Psst},\" said a voice. It was <F>, <his> friend the <fkind>. \"{You too|I cannot sleep either},\" said <F>."),
        ("\"{Some <treat>|A little <treat>} will help,\" said <F>. They {tried it|ate and drank}, {and it was good, but they were still awake|but it did not help|but it only left crumbs in the grass}.", "\"{Let us run until we are tired|We could jump a hundred times},\" said <F>. They {did it|tried}, but {then they were even more awake|it only made them laugh}."),
        ("{Then|After a while} they asked <G>, who {knew many things|was up late too}. \"{Listen|Be still and listen},\" <ghe> said.", "<G> {heard them|came by with a lamp}. \"{Sit down|Come here}, and I will {tell you what the night says|show you something},\" <ghe> said."),
        ("They {listened|closed their eyes}. The {wind|stream} {whispered|murmured}, {a cricket played its fiddle|an owl called far away}.", "\"{The day has gone to rest|Even the wind lies down},\" said <G>{ softly|}. \"{The flowers close|The fish sleep in the pond}, {and the clouds move slowly|and the hills are dreaming}.\""),
        ("<N> {yawned|leaned on <F>}. \"{That is nice|I like that},\" <he> {murmured|said}.", "{Soon|Slowly}, <his> {eyes grew heavy|head sank down}. <F> {yawned too|was already snoring}."),
        ("<G> {carried them both to bed|put a blanket over the two}.", "<N> {said good night|waved to <F>} and {crept|went} back to bed.", ""),
        ("{And before the moon had moved|A moment later}, <N> was {fast asleep|asleep}{, and dreamed of <hobby>|}.", "That night, <N> dreamed of <hobby>."),
    ),
    summary=("<N> the <kind> could not sleep. Together with <F> and <G>, <he> listened to the night until <he> fell asleep.",),
    questions=(
        (("What was the problem?", "Why was <N> awake?", "What could <N> not do?"), ("<N> could not sleep.",)),
        (("Who else was awake?", "Who did <N> meet?", "Who was outside?"), ("<F>, a <fkind>, was awake too.", "<N> met <F> the <fkind>.")),
        (("How did it end?", "What happened in the end?", "Did <N> sleep?"), ("Yes, in the end <N> fell asleep.", "<N> listened to the night and fell asleep.")),
    ),
    moral=("{Who listens to the night|Who lies still and listens} {finds sleep|will soon be dreaming}.", "{Good night|Sleep well}, little {star|one}."),
)

PLOTS = (NEWCOMER, QUARREL, HONEST, BEDTIME)
