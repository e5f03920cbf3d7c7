"""Is one model better than another, and is it shown? Tests of translations, and what they say."""
