"""The commands of the command line, one function each: parse, call one library function, print where its output is.

Import neither torch nor diffusers before a command runs.
"""
