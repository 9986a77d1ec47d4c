"""The report's page as a jinja2 template. Colours follow the reader's light or dark setting; pictures stay on white."""

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>
:root { --text: #1b1b1b; --quiet: #5a5a5a; --page: #ffffff; --line: #c8c8c8; --stripe: #f3f3f3; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e8e8e8; --quiet: #a8a8a8; --page: #161616; --line: #4a4a4a; --stripe: #222222; }
}
@media print {
  :root { --text: #000000; --quiet: #404040; --page: #ffffff; --line: #999999; --stripe: #ffffff; }
  figure, tr { break-inside: avoid; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page);
  max-width: 80rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; margin: 2rem 0 0.6rem; }
h3 { font-size: 1rem; }
nav ul { padding-left: 1.2rem; }
a { color: inherit; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid var(--line); vertical-align: bottom; }
tbody tr:nth-child(even) { background: var(--stripe); }
tbody th { font-weight: normal; }
.text td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.missing, .notes { color: var(--quiet); }
.notes { font-size: 13px; padding-left: 1.2rem; }
figure { margin: 1.5rem 0; }
figure img { display: block; max-width: 100%; height: auto; background: #ffffff; border: 1px solid var(--line); }
figcaption { font-size: 13px; color: var(--quiet); margin-top: 0.3rem; }
</style>
</head>
<body>
{% macro show(table, kind="") %}
<h3>{{ table.title }}</h3>
<div class="table"><table{% if kind %} class="{{ kind }}"{% endif %}>
<thead><tr>{% for text in table.heading %}<th scope="col">{{ text }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in table.rows %}
<tr>{% for text in row %}{% if loop.first %}<th scope="row">{{ text }}</th>
{%- elif text == "missing" %}<td class="missing">{{ text }}</td>
{%- else %}<td>{{ text }}</td>{% endif %}{% endfor %}</tr>
{% endfor %}
</tbody>
</table></div>
{% endmacro %}
<h1>{{ title }}</h1>
<nav><ul>
{% for section in sections %}
<li><a href="#section{{ loop.index }}">{{ section.title }}</a></li>
{% endfor %}
<li><a href="#provenance">Where this comes from</a></li>
</ul></nav>
{% for section in sections %}
<section id="section{{ loop.index }}">
<h2>{{ section.title }}</h2>
{% for picture in section.pictures %}
<figure><img alt="{{ picture.caption }}" src="{{ picture.data }}">
<figcaption>{{ picture.caption }}</figcaption></figure>
{% endfor %}
{% for table in section.tables %}
{{ show(table) }}
{% endfor %}
{% if section.notes %}
<ul class="notes">
{% for note in section.notes %}
<li>{{ note }}</li>
{% endfor %}
</ul>
{% endif %}
</section>
{% endfor %}
<section id="provenance">
<h2>Where this comes from</h2>
<ul class="notes">
{% for line in sources %}
<li>{{ line }}</li>
{% endfor %}
{% for note in notes %}
<li>{{ note }}</li>
{% endfor %}
</ul>
{{ show(origins, "text") }}
{{ show(runs) }}
</section>
</body>
</html>
"""
