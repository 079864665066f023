/* words.c - see words.h. The lists are ours; they are data, so the order of their words is a promise: a
 * seed gives the same texts as long as they stand as they are.
 */
#include "words.h"

#include <stdio.h>

/* clang-format off */
const char *const NOUNS[] = {
    "acorn", "airport", "album", "alley", "anchor", "animal", "ankle", "apple", "apron", "arch",
    "arena", "armor", "arrow", "artist", "atlas", "attic", "author", "autumn", "avenue", "bakery",
    "balcony", "ballad", "bamboo", "banana", "bandage", "banner", "bargain", "barley", "barn",
    "barrel", "basin", "basket", "bath", "battery", "beach", "beacon", "bean", "bear", "beaver",
    "bed", "bee", "belfry", "bell", "belt", "bench", "berry", "bicycle", "bird", "biscuit",
    "blanket", "blossom", "boat", "bone", "bonnet", "book", "boot", "border", "bottle", "boulder",
    "bowl", "box", "branch", "brass", "bread", "breeze", "brick", "bridge", "broom", "brother",
    "brush", "bucket", "buffalo", "building", "bull", "bus", "butter", "button", "cabin", "cabinet",
    "cable", "cactus", "cake", "calendar", "camel", "camera", "canal", "candle", "canoe", "canvas",
    "canyon", "captain", "car", "card", "cargo", "carpet", "carrot", "castle", "cat", "cave",
    "ceiling", "cellar", "chain", "chair", "chalk", "channel", "chapel", "charcoal", "cheese",
    "cherry", "chess", "chest", "chicken", "chimney", "church", "cider", "circle", "circus", "city",
    "clay", "cliff", "clock", "closet", "cloud", "clover", "coach", "coal", "coast", "coat",
    "cobbler", "coffee", "coin", "collar", "college", "comet", "compass", "concert", "copper",
    "coral", "corner", "cottage", "cotton", "country", "courtyard", "cousin", "cow", "cradle",
    "crane", "creek", "cricket", "crow", "crown", "crystal", "cup", "cupboard", "curtain",
    "cushion", "dairy", "dance", "daughter", "dawn", "deer", "desert", "desk", "diamond", "dinner",
    "doctor", "dog", "dolphin", "donkey", "door", "dragon", "drawer", "dream", "dress", "drum",
    "duck", "dust", "eagle", "earth", "easel", "echo", "elbow", "elephant", "engine", "envelope",
    "evening", "factory", "falcon", "farm", "father", "feather", "fence", "fern", "ferry", "fiddle",
    "field", "finger", "fire", "fish", "flag", "flame", "flint", "flour", "flower", "flute", "fog",
    "forest", "forge", "fork", "fountain", "fox", "frame", "frog", "fruit", "funnel", "furnace",
    "gallery", "garden", "garlic", "garment", "gate", "ghost", "ginger", "glacier", "glass",
    "globe", "glove", "goat", "gold", "goose", "grain", "grape", "grass", "gravel", "guest",
    "guitar", "gull", "hallway", "hammer", "hammock", "hand", "handle", "harbor", "harp", "harvest",
    "hat", "hawk", "hay", "heart", "hedge", "helmet", "hen", "herb", "heron", "highway", "hill",
    "hinge", "history", "holiday", "honey", "hook", "horizon", "horn", "horse", "hospital", "hotel",
    "house", "hunter", "ice", "ink", "inlet", "iron", "island", "ivory", "ivy", "jacket", "jar",
    "jewel", "journal", "journey", "judge", "juice", "jungle", "kettle", "key", "kingdom",
    "kitchen", "kite", "knee", "knife", "knight", "knot", "ladder", "lady", "lake", "lamb", "lamp",
    "lantern", "lark", "lawn", "leaf", "leather", "lemon", "lesson", "letter", "library",
    "lighthouse", "lily", "lion", "lizard", "lobster", "lock", "log", "loom", "lumber", "machine",
    "magnet", "mailbox", "map", "maple", "marble", "market", "mask", "meadow", "medal", "melody",
    "melon", "merchant", "metal", "mill", "miner", "mirror", "mitten", "monkey", "moon", "morning",
    "mother", "mountain", "mouse", "museum", "mushroom", "music", "nail", "napkin", "neck",
    "needle", "nest", "net", "night", "notebook", "nurse", "oak", "oar", "oasis", "ocean", "office",
    "olive", "onion", "orange", "orchard", "orchestra", "otter", "oven", "owl", "oyster", "paddle",
    "page", "painter", "palace", "paper", "parade", "park", "parrot", "path", "pear", "pearl",
    "pebble", "pelican", "pencil", "pepper", "piano", "picture", "pigeon", "pillow", "pilot",
    "pine", "pitcher", "planet", "plank", "plate", "plow", "plum", "pocket", "poem", "pond", "pony",
    "porch", "portrait", "potato", "prairie", "prince", "printer", "pumpkin", "puppet", "puzzle",
    "quarry", "queen", "quilt", "rabbit", "radio", "raft", "railway", "rain", "raven", "razor",
    "reef", "ribbon", "rice", "river", "road", "robin", "rocket", "roof", "room", "rooster", "root",
    "rope", "rose", "rudder", "saddle", "sail", "salmon", "salt", "sand", "sandal", "scarf",
    "school", "scissors", "sculptor", "sea", "seed", "shadow", "sheep", "shelf", "shell",
    "shepherd", "ship", "shirt", "shoe", "shore", "shovel", "silk", "silver", "singer", "sister",
    "sky", "sled", "sleeve", "snail", "snow", "soap", "soldier", "song", "soup", "sparrow",
    "spider", "spoon", "spring", "square", "squirrel", "stable", "stage", "stair", "star",
    "station", "statue", "steam", "steel", "stone", "storm", "story", "stove", "stream", "street",
    "string", "sugar", "summer", "sun", "swan", "table", "tailor", "tambourine", "teacher",
    "temple", "tent", "theater", "thimble", "thistle", "thread", "throne", "thunder", "ticket",
    "tide", "tiger", "timber", "toad", "tomato", "tower", "town", "trail", "train", "tree",
    "trumpet", "trunk", "tulip", "tunnel", "turkey", "turtle", "umbrella", "uncle", "valley", "van",
    "vase", "velvet", "vessel", "village", "vineyard", "violet", "violin", "voyage", "wagon",
    "waiter", "wall", "walnut", "walrus", "wand", "warehouse", "watch", "water", "wave", "weaver",
    "well", "whale", "wheat", "wheel", "whistle", "willow", "wind", "window", "wing", "winter",
    "wizard", "wolf", "wood", "wool", "worm", "yard", "yarn", "zebra", NULL,
};

const char *const ADJECTIVES[] = {
    "able", "absent", "abundant", "active", "actual", "afraid", "agile", "alert", "alive", "amber",
    "ample", "amused", "ancient", "angry", "annual", "anxious", "apt", "arctic", "artful", "asleep",
    "autumnal", "average", "awake", "aware", "awkward", "bare", "bashful", "basic", "bitter",
    "black", "bland", "blank", "blind", "blue", "blunt", "bold", "boundless", "brave", "breezy",
    "brief", "bright", "brisk", "broad", "broken", "bronze", "brown", "bumpy", "busy", "calm",
    "candid", "capable", "careful", "careless", "carved", "casual", "central", "certain",
    "charming", "cheap", "cheerful", "chief", "chilly", "chosen", "civic", "classic", "clean",
    "clear", "clever", "close", "cloudy", "clumsy", "coarse", "coastal", "cold", "colorful",
    "common", "complete", "complex", "cool", "correct", "costly", "cozy", "crimson", "crisp",
    "crooked", "crowded", "cruel", "curious", "curly", "curved", "daily", "damp", "daring", "dark",
    "dear", "decent", "deep", "delicate", "dense", "distant", "dizzy", "double", "doubtful", "drab",
    "dreamy", "dry", "dual", "dull", "dusty", "eager", "early", "eastern", "easy", "edible",
    "elastic", "elder", "electric", "elegant", "empty", "endless", "enormous", "equal", "even",
    "exact", "exotic", "expert", "extra", "faded", "faint", "fair", "faithful", "false", "familiar",
    "famous", "fancy", "far", "fast", "fatal", "favorite", "fearless", "festive", "few", "fierce",
    "final", "fine", "firm", "fit", "flat", "fluent", "fluffy", "flying", "foggy", "fond",
    "foolish", "foreign", "formal", "fragile", "frank", "free", "fresh", "friendly", "frosty",
    "frozen", "full", "funny", "fuzzy", "gentle", "genuine", "giant", "gifted", "glad", "gleaming",
    "global", "gloomy", "glossy", "golden", "good", "graceful", "grand", "grateful", "grave",
    "gray", "great", "green", "grim", "grown", "grumpy", "handsome", "handy", "happy", "hard",
    "harmless", "harsh", "hasty", "healthy", "hearty", "heavy", "helpful", "hidden", "high",
    "hollow", "holy", "homely", "honest", "hopeful", "hot", "huge", "humble", "humid", "hungry",
    "icy", "ideal", "idle", "immense", "indigo", "inland", "inner", "innocent", "intense", "inward",
    "jagged", "jolly", "joyful", "juicy", "jumbo", "just", "keen", "kind", "known", "lame", "large",
    "last", "late", "lavish", "lazy", "leafy", "lean", "learned", "left", "legal", "level", "light",
    "likely", "limp", "linear", "liquid", "little", "lively", "local", "lofty", "lonely", "long",
    "loose", "lost", "loud", "lovely", "low", "loyal", "lucky", "lunar", "magic", "main", "major",
    "marine", "mature", "mean", "medical", "mellow", "merry", "mighty", "mild", "milky", "minor",
    "misty", "mixed", "mobile", "modern", "modest", "moist", "moral", "mossy", "moving", "muddy",
    "musical", "mute", "narrow", "nasty", "native", "natural", "near", "neat", "nervous", "neutral",
    "new", "nice", "nimble", "noble", "noisy", "normal", "northern", "novel", "numb", "obvious",
    "odd", "offbeat", "official", "old", "open", "opposite", "oral", "ordinary", "ornate", "outer",
    "oval", "overdue", "pale", "parallel", "partial", "past", "patient", "peaceful", "perfect",
    "perky", "pink", "plain", "playful", "pleasant", "plump", "pointed", "polar", "polite", "poor",
    "popular", "precious", "present", "pretty", "prime", "private", "prompt", "proper", "proud",
    "public", "pure", "purple", "quaint", "quick", "quiet", "quirky", "radiant", "rainy", "rapid",
    "rare", "raw", "ready", "real", "rear", "recent", "red", "regal", "regular", "remote", "rich",
    "rigid", "ripe", "rising", "roomy", "rosy", "rough", "round", "royal", "rugged", "rural",
    "rustic", "rusty", "sacred", "sad", "safe", "salty", "sandy", "scarce", "scarlet", "secret",
    "senior", "serene", "serious", "shaggy", "shallow", "sharp", "shiny", "short", "shy", "sick",
    "silent", "silky", "silly", "simple", "sincere", "single", "skilled", "sleepy", "slender",
    "slim", "slippery", "slow", "small", "smart", "smoky", "smooth", "snowy", "sober", "social",
    "soft", "solar", "solid", "somber", "sore", "sour", "southern", "spare", "special", "spicy",
    "spotless", "stale", "stark", "steady", "steep", "sticky", "stiff", "still", "stormy",
    "strange", "strict", "strong", "sturdy", "subtle", "sudden", "sunny", "superb", "sure", "sweet",
    "swift", "tall", "tame", "tan", "tardy", "tart", "tasty", "tender", "tense", "terse", "thick",
    "thin", "thirsty", "thorough", "tidy", "tight", "timid", "tiny", "tired", "total", "tough",
    "tranquil", "tricky", "trim", "tropical", "true", "trusty", "twin", "typical", "ugly", "unique",
    "united", "unusual", "upper", "upright", "urban", "urgent", "useful", "usual", "vacant",
    "vague", "vain", "valid", "vast", "verbal", "vibrant", "virtual", "vital", "vivid", "vocal",
    "warm", "wary", "watery", "weak", "wealthy", "weary", "weekly", "weird", "western", "wet",
    "white", "whole", "wide", "wild", "willing", "windy", "winged", "wise", "wistful", "witty",
    "wonderful", "wooden", "woolen", "worthy", "woven", "yearly", "yellow", "young", "zealous",
    NULL,
};
/* clang-format on */

enum {
    N_NOUNS = sizeof NOUNS / sizeof NOUNS[0] - 1,
    N_ADJECTIVES = sizeof ADJECTIVES / sizeof ADJECTIVES[0] - 1,
};

int words_nouns(void)
{
    return N_NOUNS;
}

int words_adjectives(void)
{
    return N_ADJECTIVES;
}

int words_common(void)
{
    return N_NOUNS + N_ADJECTIVES;
}

const char *words_common_at(int i)
{
    return i < N_NOUNS ? NOUNS[i] : ADJECTIVES[i - N_NOUNS];
}

/* ==== Made-up words: four syllables of a consonant and a vowel ==== */

static const char CONSONANTS[] = "bdfgklmnprstvz", VOWELS[] = "aeiou";
enum {
    N_CONSONANTS = sizeof CONSONANTS - 1,
    N_VOWELS = sizeof VOWELS - 1,
    N_SYLLABLES = N_CONSONANTS * N_VOWELS,
};

uint64_t words_made(void)
{
    return (uint64_t)N_SYLLABLES * N_SYLLABLES * N_SYLLABLES * N_SYLLABLES;
}

void words_made_at(uint64_t i, char out[WORD_MAX])
{
    int len = 0;
    for (int syllable = 0; syllable < 4; syllable++) {
        unsigned at = (unsigned)(i % N_SYLLABLES);
        i /= N_SYLLABLES;
        out[len++] = CONSONANTS[at / N_VOWELS];
        out[len++] = VOWELS[at % N_VOWELS];
    }
    out[len] = '\0';
}
