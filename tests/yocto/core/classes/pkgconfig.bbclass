# Only inherited: nothing of it is needed to parse the recipes.
