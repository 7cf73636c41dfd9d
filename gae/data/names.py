"""Names of the data sets that ``load`` knows, without the packages that read them."""

OPENML = {"mnist": "mnist_784", "fashion-mnist": "Fashion-MNIST"}
NAMES = ("digits", *OPENML, "swiss-roll", "circles", "linear-gaussian")
