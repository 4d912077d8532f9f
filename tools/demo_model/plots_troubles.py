"""Plots that begin with a trouble: something lost, feared, broken, or done wrong."""

from __future__ import annotations

import random

import words
from plot import Facts, Plot


def _elder(rng: random.Random, facts: Facts) -> None:
    facts["G"], facts["ghe"] = rng.choice(words.ELDERS)


def _lost(rng: random.Random, facts: Facts) -> None:
    _elder(rng, facts)
    facts["thing"], facts["color"] = rng.choice(words.LOST), rng.choice(words.COLORS)
    facts["s1"], facts["s2"], facts["s3"] = rng.sample(words.SEARCHED, 3)


LOST = Plot(
    theme=("who loses a <thing>", "who lost a <color> <thing>", "who looks for a <thing>", "and a lost <thing>"),
    topics=("a lost <thing>", "something lost", "searching", "a <thing>"),
    choose=_lost,
    beats=(
        ("<N> had a <color> <thing> that <he> {loved very much|took everywhere|kept in a small box}. {It was a gift from|<He> got it from} <G>.", "The {dearest|best} thing <N> owned was a <color> <thing>{, a gift from <G>| from <G>|}."),
        ("<Day>, {it was gone|the <thing> was gone}!", "But <day>, <he> {could not find it|put <his> hand in the pocket and it was empty}.", "But <day>, <he> {looked|reached} for the <thing>, and it was {not there|gone}."),
        ("\"{Where is my <thing>|Oh no, where can it be}?\" {cried|asked} <N>.", "<N> {turned|went} pale. <G> must not know!", "<He> {looked|felt} {very worried|ready to cry}.", ""),
        ("First <he> looked <s1>, but {there was only dust|it was not there|<he> found only an old shoe}.", "<He> {ran|went} to look <s1>. {Nothing|There was nothing but a sleepy snail}."),
        ("<F>, <his> friend the <fkind>, {wanted to help|came to help}. \"{Where did you have it last|When did you see it last}?\" <fhe> asked. \"{I do not know|Yesterday, I think},\" said <N>.",
         "Then <he> met <F>, a <fadj> <fkind>. \"{What are you looking for|Did you lose something}?\" asked <F>. \"My <thing>,\" {said <N>|<he> answered}. \"{Two see more than one|I will help you look},\" said <F>."),
        ("Together they {searched|looked} <s2>. They found {a nest and a nail|three acorns and a fork}, but no <thing>.", "They {crawled around|searched} <s2> until their {knees hurt|hands were dirty}. {Still no <thing>|It was not there either}."),
        ("{\"It is lost forever,\" {said <N>|<he> sighed}.|<N> wanted to give up.} \"{One more place|Let us look in one last place},\" said <F>.", "The sun was {going down|low}. \"{Let us go home|It is no use},\" said <N>. But <F> {stopped|raised <fhis> head}. \"{Wait, look there|Look}!\"", "\"{Think|Close your eyes and think},\" said <F>. \"Where did you {play|walk} yesterday?\" {Then <N> remembered|Suddenly <N> knew}!"),
        ("Something <color> {was shining|lay} <s3>. It was the <thing>!", "They {ran to look|looked} <s3>, and there {it was|it lay}, {wet but whole|safe and sound|a little dirty}!", "And there, <s3>, {sat a bird|was a mole} with the <color> <thing>. \"{Is this yours|I found it},\" {it|the creature} said, and gave it back."),
        ("<N> {held it tight|laughed with joy|kissed it}. \"{Thank you|I thank you}, <F>! {I would never have found it alone|You are a true friend}.\"", "\"You found it!\" {cried|shouted} <N> and {hugged|danced around} <F>.", "What a {relief|happy moment}! <N> {thanked|hugged} <F> and {wiped away the last tear|smiled from ear to ear}."),
        ("From that day on, <he> {always put it back in its place|tied it to <his> coat with a string|took better care of it}.", "That evening, they told <G> the {story|whole tale}, and {all three laughed|<ghe> was not angry at all}.", ""),
    ),
    summary=("<N> the <kind> lost a <color> <thing>. With the help of <F>, <he> found it <s3>.", "It is about a <kind> called <N> who lost a <thing> and looked everywhere until it turned up <s3>."),
    questions=(
        (("What did <N> lose?", "What was lost?", "What was gone?"), ("<N> lost a <color> <thing>.", "The <color> <thing> was lost.")),
        (("Where was the <thing>?", "Where did they find it?", "Where was it?"), ("They found it <s3>.", "It was <s3>.")),
        (("What color was the <thing>?", "Which color did it have?"), ("The <thing> was <color>.", "It was <color>.")),
        (("How did it end?", "What happened in the end?"), ("They found the <thing> <s3>, and <N> was happy.",)),
    ),
    moral=("{Two pairs of eyes|Four eyes} see more than {one|two}.", "{Never give up too soon|What is lost can be found}.", "A friend who helps you {look|search} is {worth more than any treasure|the real treasure}."),
)


def _fear(rng: random.Random, facts: Facts) -> None:
    facts["fear"] = rng.choice([f for f in words.FEARS if f != "deep water" or facts["kind"] not in words.SWIMMERS])
    facts["event"], facts["saying"], facts["truth"] = words.FEARS[facts["fear"]]


FEAR = Plot(
    theme=("who is afraid of <fear>", "who is scared of <fear>", "who learns to be brave"),
    topics=("being brave", "courage", "fear", "<fear>"),
    choose=_fear,
    beats=(
        ("{There was only one problem|But <he> had a secret}: <N> was afraid of <fear>.", "<N> {was not afraid of bees or big waves|could do many things}, but <he> was {terribly|very} afraid of <fear>.", "{Everybody knew|Nobody knew} that <N> was scared of <fear>."),
        ("{When the others talked about it|When <he> thought of it}, <his> knees {began to shake|felt like pudding}.", "<He> always {found a reason to stay home|hid under the blanket}.", "\"{I will never be brave|Why am I such a coward},\" <he> {often thought|said to <his> pillow}.", ""),
        ("<Day>, <he> was out with <F>, <his> friend, a <fadj> <fkind>. {And then|Suddenly} <event>.", "<Day>, <N> visited <F> the <fkind>. {They were having fun|They played and laughed}. Then <event>.", "Then came the day when <event>. <F> the <fkind> was {there too|with <him>}."),
        ("<N> {froze|could not move}. \"{I want to go home|I cannot do it},\" <he> {whispered|cried}.", "<N> {began to tremble|closed <his> eyes} and {held on to <F>|hid behind <F>}.", "\"{Help|Oh no}!\" {cried|shouted} <N>. <His> heart {beat like a drum|was pounding}."),
        ("<F> {did not laugh|took <his> hand}. \"<saying>,\" {<fhe> said|said <F>} {softly|in a calm voice}.", "\"I was afraid {once|of it} too,\" said <F>. \"Then my mother told me: <saying>.\""),
        ("{\"Are you sure?\" asked <N>. \"Quite sure,\" said <F>.|<N> thought about it.} {Slowly|Very slowly}, <he> {opened one eye|took a first step}, and then {the other|another}.", "<N> {took a deep breath|counted to ten}. One step, two steps, {three|then a third}.", "<N> {did not want to|was not sure}, but <he> {trusted|believed} <F>. So <he> {went on|tried}."),
        ("{And it turned out that|And then <he> found out that|Soon <he> saw that} <truth>.", "{What a surprise|How strange}, <truth>!"),
        ("\"{Was that all|It was not so bad},\" {said|laughed} <N>.", "<N> {had to laugh|began to smile}. \"{Look at me|I am doing it}!\"", "{Little by little|Bit by bit}, the fear {became smaller|melted like snow}."),
        ("{That night|That evening}, <N> {slept very well|told everyone at home about it}.", "\"{You are very brave|You did it},\" said <F>. \"{I was still afraid|I was shaking},\" said <N>. \"{That is why it was brave|Brave people are afraid too},\" {said <F>|answered the <fkind>}.", "<N> {thanked|hugged} <F>. \"{Next time|Tomorrow}, {I will go first|I will help you},\" <he> {promised|said}."),
    ),
    summary=("<N> the <kind> was afraid of <fear>. <F> helped <him> to be brave, and then <he> saw that <truth>.",),
    questions=(
        (("What was <N> afraid of?", "What was the <kind> scared of?"), ("<N> was afraid of <fear>.", "<He> was scared of <fear>.")),
        (("What did <F> say?", "How did <F> help?", "Who helped <N>?"), ("<F> said, \"<saying>.\"", "<F> helped and said, \"<saying>.\"")),
        (("How did it end?", "What happened in the end?"), ("In the end, <N> was brave and found out that <truth>.",)),
    ),
    moral=("To be brave is to {be afraid and do it anyway|go on although you are afraid}.", "{Fear|Every fear} {gets smaller|shrinks} when {a friend is near|you look at it closely}."),
)


def _rescue(rng: random.Random, facts: Facts) -> None:
    facts["victim"], facts["stuck"], facts["freed"], facts["gift"] = rng.choice([r for r in words.RESCUES if r[0] not in (facts["kind"], facts["fkind"])])


RESCUE = Plot(
    theme=("who saves a <victim>", "who finds a <victim>", "who helps a <victim>", "and a <victim> in trouble"),
    topics=("helping others", "kindness", "a rescue", "a <victim>"),
    choose=_rescue,
    beats=(
        ("<Day>, <N> heard a {thin|tiny|weak} voice. \"{Help|Please help me}!\"", "<Day>, <he> was {on the way to the market|walking to school|gathering wood} when {somebody cried|<he> heard a cry}.", "<Day>, there was a {strange|sad} sound {in the air|not far away}. {Someone was crying|It sounded like crying}."),
        ("It was a <victim>, <stuck>. \"{I cannot get out|I have been here all night},\" {it cried|it said}.", "<N> {looked around|followed the sound} and found a <victim>. It was <stuck>."),
        ("\"{Do not be afraid|Stay calm},\" said <N>. \"I will {help|free} you.\" {But how?|That was easy to say.}", "\"{Poor thing|You poor little one}!\" said <N>. <He> {wanted to help at once|did not wait}.", "<N> {was late already|had other plans}, but <he> could not {just walk on|leave it there}."),
        ("<He> {tried|pulled} with all <his> {strength|might}, but {it was too hard for one|nothing moved}.", "<His> first {idea|try} did not work, and the <victim> {grew weaker|began to cry again}.", "<He> was {too weak|not strong enough} {to do it alone|by <him>self}."),
        ("So <he> {ran|hurried} to {get|fetch} <F>, a <fadj> <fkind>. \"{Come quickly|Please come}!\" {<he> cried|called <N>}.", "{Luckily|By good luck}, <F> the <fkind> {came by|was near}. \"{Two are stronger than one|I will help},\" said <F>."),
        ("Together they <freed>. {It took a long time|It was hard work}.", "\"{I have an idea|Let us think},\" said <F>. Then they <freed>.", "They {worked side by side|counted to three}. <N> and <F> <freed>."),
        ("{At last|And then}, the <victim> was free! It {danced for joy|took a deep breath}.", "The little <victim> was {free|safe}! \"{Thank you with all my heart|I thank you},\" it said."),
        ("<N> gave it {water|some bread} and {stayed|sat} with it {until it felt better|for a while}.", "They {took it home|wrapped it in a coat} and {kept it warm|fed it} {for the night|until morning}.", ""),
        ("{A few days later|The next day}, there was something {at the door|on the step}: <gift>. It was a {gift|thank you} from the <victim>.", "And the <victim> {did not forget|remembered}. {From then on|Later}, it brought them <gift>.", "\"{You saved my life|You were so kind},\" said the <victim>. \"{I have only this to give|Please take this}: <gift>.\""),
        ("<N> and <F> {smiled|looked at each other}. {That was the best pay of all|They felt warm inside}.", "", "{So it was that|That is how} <N>, <F> and the <victim> became {friends|the best of friends}."),
    ),
    summary=("<N> the <kind> found a <victim> that was <stuck>. Together with <F>, <he> set it free.",),
    questions=(
        (("Who was in trouble?", "Who needed help?", "Who cried for help?"), ("A <victim> needed help. It was <stuck>.", "It was a <victim>, <stuck>.")),
        (("How did they free it?", "How did they help the <victim>?", "What did they do?"), ("<N> and <F> <freed>.", "They <freed>.")),
        (("What was the gift?", "How did the <victim> thank them?", "How did it end?"), ("The <victim> was free and gave them <gift>.", "It thanked them with <gift>.")),
    ),
    moral=("{A kind deed is never lost|Kindness comes back to you}.", "{Even the small can do great things|Nobody is too small to help}."),
)


def _storm(rng: random.Random, facts: Facts) -> None:
    _elder(rng, facts)
    facts["treat"] = rng.choice(words.TREATS)


STORM = Plot(
    theme=("whose house is broken by a storm", "and a big storm", "who loses <his> home in a storm"),
    topics=("a storm", "helping each other", "good neighbors", "a new house"),
    choose=_storm,
    beats=(
        ("<Day>, {dark clouds came|the sky turned black}. \"{A storm is coming|That will be a big storm},\" said <G>.", "<Day>, the wind {began to howl|grew stronger and stronger}."),
        ("It {rained and thundered|stormed} all night. {Crack|Boom}! {A tree fell|The old oak came down}, and the {roof|house} of <N> was {broken|in pieces}.", "<N> {hid|sat} in the {cellar|corner}. {In the morning|When it was over}, {the roof was gone|half of the house was gone}."),
        ("\"My {home|poor home}!\" {cried|sobbed} <N>. \"Where {shall|will} I sleep now?\"", "<N> {stood in the rain|looked at the broken walls} and did not know what to do.", "There <he> {stood|was}, {wet and cold|with nothing but a wet blanket}."),
        ("First <he> {tried to fix it|put up some boards} alone, but {they fell down|the hammer was too heavy}.", "<He> {built a tent from leaves|made a bed of straw}, but the wind {blew it away|took it}.", ""),
        ("Then <F> the <fkind> {came|knocked on what was left of the door}. \"{You can sleep at my place|Stay with us},\" <fhe> {said|offered}.", "<His> neighbor <F>, a <fadj> <fkind>, {saw it|heard about it}. \"{Do not cry|Dry your tears},\" said <F>. \"{Tomorrow we will build a new one|We will fix it}.\""),
        ("The next {day|morning}, {everyone came|they all came}. <G> brought {nails and wood|the tools}, and <F> carried the {stones|beams}.", "<F> {went|ran} from door to door, and {soon|by noon} {the whole village was there|ten helpers stood ready}. Even <G> {came|lent a hand}."),
        ("They {sawed and hammered|worked} {all week|for three days}. {The small ones painted the walls|The birds brought moss for the roof}.", "{One|Some} cut the wood, {another|others} mixed the clay, and <N> {cooked <treat> for all|made sure that nobody was thirsty}."),
        ("{At last|Finally}, the new house was {ready|done}. It was {even nicer than the old one|strong and bright}{, with a round window|}.", "On {Sunday|the fourth day}, the last {nail|stone} was in its place, and the house {stood firm|looked beautiful}."),
        ("They {ate|shared} <treat> and {sang|danced} {in the new kitchen|around a fire}.", "\"How can I {thank you|pay you back}?\" asked <N>. \"{You would do the same for us|With a piece of <treat>},\" {laughed|said} <F>.", "<N> {had tears in <his> eyes|could hardly speak}. \"{Thank you, thank you all|You are the best neighbors of all},\" <he> said."),
        ("When the next storm came, <N> {sat|was} warm {inside|by the fire}, and {the door was open to all|<F> came for tea}.", ""),
    ),
    summary=("A storm broke the house of <N> the <kind>. <F>, <G> and the others helped to build a new one.",),
    questions=(
        (("What happened to the house?", "Why did <N> cry?", "What did the storm do?"), ("The storm broke the house of <N>.",)),
        (("Who helped?", "Who helped <N>?", "Who built the house?"), ("<F>, <G> and the others helped.", "<F> the <fkind> and <G> helped to build it.")),
        (("How did it end?", "What happened in the end?"), ("They built a new house together and ate <treat>.",)),
    ),
    moral=("{In a storm you find out who your friends are|Good neighbors are the strongest roof}.", "{Together we can build anything|Many hands can lift a heavy load}."),
)

PLOTS = (LOST, FEAR, RESCUE, STORM)
