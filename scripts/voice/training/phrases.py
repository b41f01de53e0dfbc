"""What the synthetic voices say: the keyphrases alone, repeated and in sentences, and what is taken for them.

A phrase ends in ! where it is called and in . where it is said. The words are ours."""

HELP = {
    "help": ["Help!", "Help."],
    "help_help": ["Help! Help!"],
    "help_me": ["Help me!", "Help me."],
    "help_me_please": ["Help me, please!"],
    "please_help": ["Please help me!", "Please help!"],
    "somebody_help": ["Somebody help!", "Somebody help me!"],
    "need_help": ["I need help.", "I need your help."],
    "can_you_help": ["Can you help me?", "Could you please help me up?", "Is anyone there who can help?"],
    "help_fallen": ["Help, I have fallen!", "Help me, I cannot get up!"],
}
HILFE = {
    "hilfe": ["Hilfe!", "Hilfe."],
    "hilfe_hilfe": ["Hilfe! Hilfe!"],
    "zu_hilfe": ["Zu Hilfe!"],
    "brauche_hilfe": ["Ich brauche Hilfe.", "Ich brauche bitte Hilfe!"],
    "hilfe_gefallen": ["Hilfe, ich bin gestürzt!", "Hilfe, hört mich jemand?"],
}
# Kokoro knows no German spelling: the same as sounds.
HILFE_SOUNDS = {
    "hilfe": ["hˈɪlfə!", "hˈɪlfə."],
    "hilfe_hilfe": ["hˈɪlfə! hˈɪlfə!"],
    "zu_hilfe": ["ʦuː hˈɪlfə!"],
    "brauche_hilfe": ["ɪç bɾˈaʊxə hˈɪlfə."],
}
NOT_HELP = [
    "Held, health, yelp, helmet.",
    "Hello. Hell! Kelp. Whelp.",
    "Elf, shelf, self, felt, hill.",
    "He held the door.",
    "Your health is fine.",
    "The dog gave a yelp.",
    "Where is my helmet?",
    "Hello? Hello!",
    "What the hell!",
    "He'll put it there.",
    "Well, please sit down.",
    "Helen held the belt.",
    "A healthy meal.",
    "Hope. Heap. Hemp. Hip. Hop.",
    "How about a cup of tea?",
    "They felt well all week.",
    "Hold my hand, please.",
    "Half past eleven.",
    "Have you had lunch?",
    "Up the hill and down.",
    "I will have a help yourself plate.".replace("a help yourself", "another"),
    "Tell Pete about the shelf.",
    "She sells old help wanted signs.".replace("help wanted", "street"),
    "The hull of the ship.",
    "Happy birthday to you.",
    "The whole pie, please.",
]
SENTENCES = [
    "The weather is lovely this morning.",
    "Where did I leave my glasses?",
    "Tell me what is for dinner.",
    "Yes. No. Okay. Stop. Go away.",
    "I am going to the shop in a minute.",
    "Did you take your tablets today?",
    "My daughter is coming on Sunday with the children.",
    "Turn the television down a little.",
    "That was a very good programme last night.",
    "Please put the kettle on.",
    "I cannot find the remote control anywhere.",
    "Good morning, how are you today?",
    "The doctor will see you at ten.",
    "Who is at the door?",
    "Let me think about it for a while.",
    "Ladies and gentlemen, here is the news.",
]
NOT_HILFE = [
    "Hälfte. Hülle. Elf. Silbe. Halbe.",
    "Die Hälfte ist weg.",
    "Der Gehilfe kommt morgen.",
    "Eine Hülle für das Telefon.",
    "Hinter der Hütte.",
    "Ich will heute fernsehen.",
    "Die Höfe sind leer.",
    "Im Film war viel los.",
    "Hallo, wie geht es Ihnen?",
    "Hol mir die Milch.",
    "Sie hielt den Griff fest.",
    "Wölfe heulen im Wald.",
    "Wilde Hühner.",
    "Ich hatte fünf Äpfel.",
    "Schilf am See.",
    "Elf Helme.",
]
SAETZE = [
    "Guten Morgen, wie haben Sie geschlafen?",
    "Die Tabletten liegen auf dem Tisch.",
    "Wo ist meine Brille?",
    "Heute scheint die Sonne.",
    "Am Sonntag kommen die Kinder zu Besuch.",
    "Mach bitte das Fenster zu.",
    "Der Arzt kommt um zehn.",
    "Es klingelt an der Tür.",
    "Ich gehe gleich einkaufen.",
    "Stell den Fernseher leiser.",
    "Das Essen ist fertig.",
    "Meine Damen und Herren, die Nachrichten.",
]
# Words alone that are taken for a keyphrase.
WORDS = (
    "Held. Health. Yelp! Hell! Kelp. Helmet. Hello! Helm. Whelp. Elf. Shelf. Self. Felt. Hill. Hallo. Hulk! Hey! Hup! "
    "Held!~Held! Hello?~Hello! Whole. Hollow. Belt. Gulp. Alp. Heal. Howl! Heap. Held. Pulp. Healthy. Helen! Halt! Hold! Hope. Hip. Hat."
).split()  # fmt: skip
WORDS = [word.replace("~", " ") for word in WORDS]
WORTE = (
    "Hälfte. Hülle. Gehilfe. Elf. Silbe. Halbe. Hölle. Helfer. Hütte. Hüfte. Wölfe. Höfe. Schilf. Hielte. Wilde. Himmel. Hilde. "
    "Hirse. Hitze. Halle."
).split()
# One word a clip and nothing else; what is taken for a keyphrase most often stands here more than once.
ALONE = (
    "Hell! Hell. Hell! Hell. Held! Held. Held. Hope! Hope. Hope. Kelp. Kelp! Yelp. Yelp! Whelp. Whelp! Hal! Hal. Health. Helmet. Hello? Hello! "
    "Helm. Heap. Heal. Hip! Hop! Hup! Hemp. Hill. Hull. Hall. Hail! Hole. Hold! Howl. Half. Halt! Hulk! Hat. Hurt. Harp. Heel. Heat. Head! "
    "Well. Yell! Bell. Gulp. Pulp. Elf. Shelf. Self. Felt. Belt. Scalp. Hey! Hi! Oh! Ow! Hell~no! Oh~hell! Hell!~Hell! Held.~Held. "
    "Hope!~Hope! Hello!~Hello!"
).split()  # fmt: skip
ALONE = [word.replace("~", " ") for word in ALONE]
# What ends in a breath instead of a p.
BREATHED = "Health. Health! Healthy. Healthy! Your~health. A~healthy~meal. Wealth! Stealth. Half! Helmet! Helmet. Elf! What~the~hell! Hip! Hop! Hemp.".split()
BREATHED = [word.replace("~", " ") for word in BREATHED]
ALLEIN = (
    "Hälfte. Hälfte! Hülle. Hülle! Gehilfe. Gehilfe! Hölle! Hölle. Helfer. Hilde! Hilfst. Hütte. Hüfte. Himmel! Hallo? Hallo! "
    "Elf. Schilf."
).split()
# And what the voices say alone that are never trained on.
MEASURED_ALONE = "Held. Health. Yelp. Hell. Kelp. Helmet. Hello. Whelp. Hope. Heap. Heal. Hurt. Hal. Hell!".split()
GEMESSEN_ALLEIN = "Hälfte. Gehilfe. Hülle.".split()
