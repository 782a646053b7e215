//! Templates that want the server's memory, time or stack. Anybody may have written a template.

use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use super::error::Error;
use super::template::Template;
use super::value::Value;

/// Stack of the smallest thread that renders, in bytes.
const STACK: usize = 1024 * 1024;
/// A rendering that is not optimised may take so long.
const MAX_TIME: Duration = Duration::from_secs(2);

fn rendered(source: &str) -> Result<String, Error> {
    let template = Template::parse(source)?;
    template.free_names();
    template.render([("user", Value::from("Hello"))])
}

/// What a template writes on a thread with a small stack, and how long that takes.
fn on_small_stack(source: String) -> (Result<String, Error>, Duration) {
    let run = move || {
        let start = Instant::now();
        let result = rendered(&source);
        (result, start.elapsed())
    };
    thread::Builder::new().stack_size(STACK).spawn(run).unwrap().join().unwrap()
}

/// Refuses a template with this reason, in time.
fn refuse(source: impl Into<String>, reason: &str) {
    let source = source.into();
    let shown: String = source.chars().take(120).collect();
    let (result, time) = on_small_stack(source);
    let error = match result {
        Ok(text) => panic!("{shown}: {} bytes", text.len()),
        Err(error) => error.to_string(),
    };
    assert!(error.contains(reason), "{shown}: {error}");
    assert!(error.len() < 3000, "{shown}: an error of {} bytes", error.len());
    assert!(time < MAX_TIME, "{shown}: {time:?}");
}

/// Takes a template, in time.
fn take(source: impl Into<String>) {
    let source = source.into();
    let shown: String = source.chars().take(120).collect();
    let (result, time) = on_small_stack(source);
    assert!(result.is_ok(), "{shown}: {}", result.unwrap_err());
    assert!(time < MAX_TIME, "{shown}: {time:?}");
}

/// A list of two that holds one list of two that …: of few values, but without end for who walks through them.
fn shared(open: &str, middle: &str, close: &str, then: &str) -> String {
    let doubled =
        |name: &str| format!("{{% set h.{name} = {open}h.{name}{middle}h.{name}{close} %}}");
    format!(
        "{{% set h = namespace(x=1, y=1) %}}{{% for i in range(60) %}}{}{}{{% endfor %}}{then}",
        doubled("x"),
        doubled("y")
    )
}

#[test]
fn values_that_share_their_items_cost_what_they_are() {
    let lists = |then: &str| shared("[", ", ", "]", then);
    take(lists("ok"));
    refuse(lists("{{ h.x }}"), "more than");
    refuse(lists("{{ h.x | tojson }}"), "more than");
    refuse(lists("{{ h.x | pprint }}"), "more than");
    refuse(lists("{{ h.x == h.y }}"), "more than");
    refuse(lists("{{ h.x < h.y }}"), "more than");
    refuse(lists("{{ [h.x, h.y] | sort }}"), "more than");
    refuse(lists("{{ h.x in [h.y] }}"), "more than");
    refuse(shared("(", ", ", ")", "{{ {h.x: 1}[h.y] }}"), "more than");
    refuse(shared("(", ", ", ")", "{{ [h.x] | unique | list | length }}"), "more than");
    refuse(shared("{'a': ", ", 'b': ", "}", "{{ h.x == h.y }}"), "more than");
}

#[test]
fn values_are_not_nested_without_end_whatever_holds_them() {
    for holder in [
        "[h.x]",
        "(h.x,)",
        "{'a': h.x}",
        "namespace(y=h.x)",
        "cycler(h.x)",
        "cycler(h.x).next",
        "cycler(h.x).items",
        "joiner(h.x)",
        "{'a': h.x}.items()",
        "{'a': h.x}.values()",
        "[[h.x]] | map('list')",
        "[h.x] | select('defined')",
        "[h.x] | batch(1)",
        "[{'a': h.x}] | groupby('a')",
        "[h.x].count",
        "[h.x].copy()",
    ] {
        let source = format!(
            "{{% set h = namespace(x=none) %}}{{% for i in range(100000) %}}\
             {{% set h.x = {holder} %}}{{% endfor %}}ok"
        );
        refuse(source, "too deeply");
    }
    let loops = "{% set h = namespace(x=none) %}{% for i in range(5000) %}";
    refuse(
        format!("{loops}{{% for j in [h.x] %}}{{% set h.x = loop %}}{{% endfor %}}{{% endfor %}}"),
        "too deeply",
    );
    // These are held by scopes, one behind the other.
    take(format!(
        "{loops}{{% set p = h.x %}}{{% for j in [1] %}}{{% set h.x = loop %}}{{% endfor %}}{{% endfor %}}"
    ));
    take(format!(
        "{loops}{{% set p = h.x %}}{{% macro m() %}}{{% endmacro %}}{{% set h.x = m %}}{{% endfor %}}"
    ));
    let chain = "{% set h = namespace(l=[]) %}{% for i in range(900) %}\
        {% set h.l = h.l + [namespace()] %}{% endfor %}{% for a in h.l %}{% if not loop.last %}\
        {% set a.x = loop.nextitem %}{% endif %}{% endfor %}";
    take(chain);
    refuse(format!("{chain}{{{{ h.l[0] }}}}"), "too deeply");
    refuse(
        "{% set a = namespace() %}{% set b = namespace(a=a) %}{% set a.b = b %}{{ a }}",
        "holds itself",
    );
}

#[test]
fn expressions_and_blocks_are_not_nested_without_end() {
    for chain in [".a", "|d", "*1", "+1", " or x", " and x", " if x", "**1", "()", "[0]"] {
        let row = format!("{})", chain.repeat(140)).repeat(62);
        refuse(format!("{{{{ {}x{row} }}}}", "(".repeat(62)), "");
    }
    let all = [".a", "|d", "*1", "+1"].map(|chain| chain.repeat(149)).concat();
    let row = format!("{all})").repeat(62);
    refuse(format!("{{{{ {}x{row} }}}}", "(".repeat(62)), "nested too deeply");
    for (open, close) in [
        ("(", ")"),
        ("[", "]"),
        ("not ", ""),
        ("-", ""),
        ("{'a': ", "}"),
        ("x(", ")"),
        ("x[", "]"),
        ("x|d(", ")"),
    ] {
        let source = format!("{{{{ {}1{} }}}}", open.repeat(20_000), close.repeat(20_000));
        refuse(source, "nested too deeply");
        let deepest = format!("{{{{ {}1{} }}}}", open.repeat(62), close.repeat(62));
        let (_, time) = on_small_stack(deepest);
        assert!(time < MAX_TIME, "{open}: {time:?}");
    }
    refuse("{% if user %}".repeat(20_000), "nested too deeply");
    refuse("{% for x in user %}".repeat(20_000), "nested too deeply");
    refuse(format!("{{% set x{} %}}{{% endset %}}", "|upper".repeat(20_000)), "nested too deeply");
    refuse(
        format!("{}{{% endfilter %}}", "{% filter upper".to_owned() + &"|upper".repeat(20_000)),
        "nested too deeply",
    );
}

#[test]
fn calls_are_not_nested_without_end() {
    for source in [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f() %}{% if true %}{% for i in [1] %}{% set x %}{{ [f()] | join }}{% endset %}\
         {% endfor %}{% endif %}{% endmacro %}{{ f() }}",
        "{% macro f(caller=none) %}{% call f() %}y{% endcall %}{% endmacro %}{{ f() }}",
        "{% macro f() %}{% filter upper %}{% with %}{% autoescape true %}{{ f() }}\
         {% endautoescape %}{% endwith %}{% endfilter %}{% endmacro %}{{ f() }}",
        "{% for x in [[]] recursive %}{{ loop([[]]) }}{% endfor %}",
    ] {
        refuse(source, "recursion");
    }
    let deep =
        "{% set h = namespace(x=1) %}{% for i in range(150) %}{% set h.x = [h.x] %}{% endfor %}";
    for use_of in ["h.x", "h.x | tojson", "h.x | pprint", "h.x == h.x + []", "h.x | string"] {
        let source = format!(
            "{deep}{{% macro f(n) %}}{{% set y = {use_of} %}}{{{{ f(n + 1) }}}}{{% endmacro %}}{{{{ f(0) }}}}"
        );
        refuse(source, "");
    }
    refuse(format!("{{{{ [[1]] | map({}'list') | list }}}}", "'map', ".repeat(5000)), "");
}

#[test]
fn the_memory_of_a_rendering_is_bounded() {
    let grown = |value: &str| {
        format!(
            "{{% set n = namespace(a=[]) %}}{{% for i in range(100000) %}}\
             {{% set n.a = n.a + [{value}] %}}{{% endfor %}}"
        )
    };
    refuse(grown("'x' * 60000000 ~ i"), "more than");
    refuse(grown("'x' * 4000000 ~ i"), "more than");
    refuse(grown("[1] * 900000"), "more than");
    refuse(grown("i"), "more than");
    refuse(
        "{% set n = namespace(l=[1]) %}{% for i in range(99) %}{% set n.l = n.l + n.l %}{% endfor %}",
        "more than",
    );
    refuse(
        "{% set n = namespace(t='ab') %}{% for i in range(99) %}{% set n.t = n.t + n.t %}{% endfor %}",
        "more than",
    );
    refuse("{% set b = 'a' * 9000000 %}{{ b }}{{ b }}", "more than");
    let captures = format!("{}{}", "{% set x %}{{ b }}".repeat(50), "{% endset %}".repeat(50));
    refuse(format!("{{% set b = 'a' * 3000000 %}}{captures}"), "more than");
    refuse("{% set l = [1] * 200000 %}{{ dict(*l) }}", "arguments");
    refuse("{{ 'a' * 99999999999 }}", "more than");
    refuse("{{ ('a' * 999999) | replace('a', 'b' * 999999) }}", "more than");
    refuse("{{ 'a'.center(99999999999) }}{{ 'a'.zfill(99999999999) }}", "more than");
    refuse("{{ '%99999999999d' % 1 }}", "");
    refuse("{{ [1, [2, [3]]] | tojson(indent='x' * 9000000) }}", "more than");
    refuse("{{ (['a'] * 100000) | join('b' * 1000000) }}", "more than");
    refuse("{{ ('ab ' * 100000) | wordwrap(1, wrapstring='x' * 100000) }}", "more than");
    refuse("{{ ('a ' * 1100000).split() }}", "more than");
    refuse("{{ ('a' * 1100000) | list }}", "more than");
    // What is let go of makes room.
    take("{% for i in range(28) %}{% set x = 'a' * 4000000 %}{% endfor %}");
    take(
        "{% set n = namespace(l=[]) %}{% for i in range(1500) %}{% set n.l = n.l + [i] %}{% endfor %}",
    );
}

#[test]
fn the_time_of_a_rendering_is_bounded() {
    for body in [
        "",
        "{{ b.bit_length() }}",
        "{% set x = 2 ** 60000 * 2 ** 60000 %}",
        "{% set x = 2 ** 60000 // (2 ** 60000 - 1) %}",
        "{% set x = '%.10000f' % 1.5 %}",
        "{% set x = ('x ' * 50000).title() %}",
        "{% set x = ('x ' * 50000) | wordwrap(3) %}",
        "{% set x = range(10000) | sort %}",
        "{% set x = range(10000) | list == range(10000) | list %}",
        "{% set x = -1 in range(100000) | list %}",
        "{% set x = dict.fromkeys(range(1000)) | dictsort %}",
        "{% set x = '{:010000,d}'.format(1) %}",
    ] {
        let source = format!(
            "{{% for a in range(99999) %}}{{% for b in range(99999) %}}{body}{{% endfor %}}{{% endfor %}}"
        );
        refuse(source, "more than");
    }
    for take_long in [
        "{{ ('ab-' * 20000) | wordwrap(3) | length }}",
        "{{ ('a' * 200000) | wordwrap(1) | length }}",
        "{{ ('-a' * 20000) | wordwrap(30000) | length }}",
        "{{ ('<!--' * 100000) | striptags | length }}",
        "{{ ('<!--a-->' * 100000) | striptags | length }}",
        "{{ ('<a>' * 100000) | striptags | length }}",
        "{{ ('&' * 100000) | striptags | length }}",
        "{{ ('é<' * 50000) | urlencode | length }}",
        "{{ {'a': '<' * 100000} | xmlattr | length }}",
        "{{ '{:0100000,d}'.format(1) | length }}",
        "{{ (2 ** 60000) | float(0) }}",
        "{{ ('1' * 60000) | int(0, 2) | float(0) }}",
        "{{ (['nan' | float(0)] * 50000) | unique | list | length }}",
        "{{ dict(**dict.fromkeys(range(10000) | map('string'))) | length }}",
        "{{ ('a' * 300000).strip('b' * 300000 ~ 'a') | length }}",
        "{{ ('é' * 100000)[::-1] | length }}",
        "{% for i in range(10000) %}{% macro m() %}{% endmacro %}{% endfor %}",
        "{% for i in range(1000) %}{% for j in [1] %}{{ loop.changed(loop) }}{% endfor %}{% endfor %}",
    ] {
        let (result, time) = on_small_stack(take_long.to_owned());
        assert!(time < MAX_TIME, "{take_long}: {time:?}");
        if let Err(error) = result {
            assert!(error.to_string().contains("int too large"), "{take_long}: {error}");
        }
    }
}

#[test]
fn the_time_of_reading_a_template_is_bounded() {
    let names = |count: usize| (0..count).map(|index| format!("a{index}=1, ")).collect::<String>();
    take(format!("{{{{ dict({}) | length }}}}", names(20_000)));
    take(format!("{{% macro f({}z=1) %}}{{% endmacro %}}{{{{ f(z=2) }}}}", names(20_000)));
    take((0..10_000).map(|index| format!("{{% set a{index} = 1 %}}")).collect::<String>());
    take("{% for i in user %}{% set a = 1 %}{% endfor %}".repeat(5_000));
    take(format!("{{{{ {} }}}}", "'a'".repeat(100_000)));
    refuse(format!("{{{{ user|a{} }}}}", ".a".repeat(100_000)), "No filter named");
    refuse("{{".repeat(100_000), "nested too deeply");
    refuse("{#".repeat(100_000), "Missing end of comment");
    refuse(format!("{{% raw %}}{}", "{% end".repeat(50_000)), "Missing end of raw");
    refuse(" ".repeat(600_000), "more than");
    refuse(format!("{{{{ {} }}}}", "9".repeat(5000)), "too long");
}

#[test]
fn what_costs_too_much_is_told_from_what_fails() {
    for (source, is_limit) in [
        ("{{ 1 / 0 }}", false),
        ("{{ raise_exception('x') }}", false),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", true),
        ("{{ 'a' * 99999999999 }}", true),
        ("{{ 10 ** 9999999 }}", true),
    ] {
        assert_eq!(rendered(source).unwrap_err().is_limit(), is_limit, "{source}");
    }
}

#[test]
fn errors_are_short_whatever_stands_in_them() {
    for source in [
        "{{ raise_exception('x' * 9000000) }}",
        "{{ {}['x' * 900000].y }}",
        "{{ '{:{x}}'.format(1, x='9' * 900000) }}",
        "{{ dict(**{'x' * 900000: 1}).y.z }}",
        "{{ 'é' * 5000 | int + none }}",
    ] {
        refuse(source, "");
    }
}

#[test]
fn nothing_outlives_a_rendering() {
    let held = Value::list(vec![Value::from("held")]);
    let Value::List(list) = &held else { panic!("a list") };
    for source in [
        "{% set n = namespace(x=held) %}{% set n.n = n %}{% set n.l = [n, held] %}",
        "{% for i in [1, 2] %}{{ loop.changed(loop, held) }}{% endfor %}",
        "{% set n = namespace() %}{% for i in [1] %}{% set n.f = loop.changed %}{% endfor %}\
         {{ n.f(n.f, held) }}{{ n.f(held, n.f) }}",
        "{% set n = namespace() %}{% for i in [held] %}{% set n.l = loop %}{% endfor %}\
         {% set kept = n.l %}{% set more = held %}",
        "{% macro m(x=held) %}{{ m }}{% endmacro %}{% set y = held %}{{ m() }}",
        "{% for i in [1] %}{% set y = held %}{% macro m() %}{{ y }}{% endmacro %}{{ m() }}{% endfor %}",
        "{% set c = cycler(held) %}{% set d = cycler(c, c.next) %}{{ d.next().next() }}",
        "{% for i in [held, 1] %}{{ i.x.y.z }}{% endfor %}",
        "{% set x = [held] | map('list') %}{% set y = [x, held] | groupby(0) %}",
    ] {
        let template = Template::parse(source).unwrap();
        let _result = template.render([("held", held.clone())]);
        assert_eq!(Rc::strong_count(list), 1, "{source}");
    }
}
