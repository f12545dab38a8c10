"""The documentation site (`make docs`): pages that follow from the code, and the hooks of mkdocs that put them in.

`pages` lists the generated pages, `api` those of modules, `lists` and `commands` the tables, `markdown` what is
done to every page. Nothing here loads torch or a model.
"""
