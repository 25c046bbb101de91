"""modeconn: are separately trained networks joined in weight space by paths of low loss?"""

__version__ = "0.1.0"
