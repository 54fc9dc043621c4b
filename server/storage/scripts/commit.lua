-- KEYS[1] prefix. ARGV: the transition.
return transition(KEYS[1])
