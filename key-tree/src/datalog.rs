//! What of Datalog a grant may hold, and how much work it may cause.
//!
//! Whoever holds a key below ours can sign any token, and we evaluate it. Biscuit's own limits are not enough for
//! that: they are looked at between iterations, and one iteration can already be endless (a join of six facts of the
//! same name). So a grant is looked through once, when it is read, and refused when evaluating it *could* be long:
//!
//! - no rules: nothing is ever derived, one pass over the checks is all;
//! - no closures over sets, no regular expressions, no functions of the host: each operator is done in time
//!   proportional to its operands;
//! - the joins of all checks together, multiplied out, have a bound, [`STEPS_MAX`].
//!
//! Facts, comparisons, sets, strings, `and`, `or`, `check if`, `check all` and `reject if` are left, and are enough to
//! say who may do what, when. The limits that Biscuit knows are set all the same.

use std::time::Duration;

use biscuit_auth::{
    AuthorizerLimits,
    builder::{Binary, BlockBuilder, Check, Expression, Fact, Op, Predicate, Rule, Term, Unary},
};

/// Facts that describe the request. A grant must not hold one: it would answer its own question.
pub(crate) const REQUEST_FACTS: [&str; 11] =
    ["time", "weekday", "minute", "operation", "purpose", "port", "exit", "host", "vm", "method", "path"];

/// Bytes of the longest Datalog text that a person may give.
pub const DATALOG_BYTES_MAX: usize = 2048;

/// How many brackets and negations such a text may have open or one after the other: the parser is recursive.
const NESTING_MAX: usize = 16;

/// Facts of one grant.
const FACTS_MAX: usize = 32;

/// Checks of one grant, and alternatives (`or`) of all of them together.
const CHECKS_MAX: usize = 32;

/// Operators and values of one alternative of a check.
const OPS_MAX: usize = 64;

/// Combinations of facts that all checks of one grant may try together: some 2 ms of work.
const STEPS_MAX: usize = 4096;

/// Why Datalog is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatalogError {
    /// The parser did not take it.
    #[error("this is not Datalog as Biscuit writes it: {0}")]
    Syntax(String),
    /// More than [`DATALOG_BYTES_MAX`] bytes.
    #[error("the Datalog has {0} bytes, and may have {DATALOG_BYTES_MAX}")]
    TooLong(usize),
    /// Too many brackets or negations.
    #[error("the Datalog is nested too deeply: at most {NESTING_MAX} brackets and negations in one statement")]
    TooDeep,
    /// A rule.
    #[error("a grant holds facts and checks, no rules: write what `{0}` derives as facts")]
    Rule(String),
    /// A fact with the name of one that the tree itself makes.
    #[error("the fact `{0}` is made by the tree itself: give yours another name")]
    Reserved(String),
    /// Something whose cost cannot be told beforehand.
    #[error("{0} cannot be used in a grant: what they cost cannot be told beforehand")]
    Unbounded(&'static str),
    /// Too many of something.
    #[error("a grant has at most {max} {what}, this one has {count}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        max: usize,
    },
}

/// Biscuit's own limits: none of them is reached by what [`inspect`] lets pass. The time is generous, because it runs
/// on while another program has the processor.
pub(crate) fn limits() -> AuthorizerLimits {
    AuthorizerLimits { max_facts: 128, max_iterations: 4, max_time: Duration::from_secs(1) }
}

/// Parses a person's Datalog and looks it through.
pub(crate) fn parse(source: &str) -> Result<(Vec<Fact>, Vec<Check>), DatalogError> {
    if source.len() > DATALOG_BYTES_MAX {
        return Err(DatalogError::TooLong(source.len()));
    }
    // Brackets in texts count too; nobody needs that many.
    let opening = |statement: &str| statement.bytes().filter(|b| b"([{!".contains(b)).count();
    if source.split(';').any(|statement| opening(statement) > NESTING_MAX) {
        return Err(DatalogError::TooDeep);
    }
    let block = BlockBuilder::new().code(source).map_err(|error| DatalogError::Syntax(error.to_string()))?;
    if !block.scopes.is_empty() {
        return Err(DatalogError::Unbounded("scopes (`trusting`)"));
    }
    inspect(&block.facts, &block.rules, &block.checks)?;
    Ok((block.facts, block.checks))
}

/// Refuses what a grant may not hold.
pub(crate) fn inspect(facts: &[Fact], rules: &[Rule], checks: &[Check]) -> Result<(), DatalogError> {
    if let Some(rule) = rules.first() {
        return Err(DatalogError::Rule(rule.to_string()));
    }
    at_most("facts", facts.len(), FACTS_MAX)?;
    if let Some(fact) = facts.iter().find(|fact| REQUEST_FACTS.contains(&fact.predicate.name.as_str())) {
        return Err(DatalogError::Reserved(fact.predicate.name.clone()));
    }
    let queries: Vec<_> = checks.iter().flat_map(|check| &check.queries).collect();
    at_most("checks", checks.len(), CHECKS_MAX)?;
    at_most("alternatives", queries.len(), CHECKS_MAX)?;
    let mut steps = 0_usize;
    for query in queries {
        if !query.scopes.is_empty() {
            return Err(DatalogError::Unbounded("scopes (`trusting`)"));
        }
        inspect_terms(query.body.iter().flat_map(|predicate| &predicate.terms))?;
        let mut ops = 0;
        for Expression { ops: sequence } in &query.expressions {
            ops += inspect_ops(sequence)?;
        }
        at_most("operators and values in one alternative", ops, OPS_MAX)?;
        steps = steps.saturating_add(combinations(&query.body, facts));
    }
    at_most("combinations of facts to try", steps, STEPS_MAX)
}

/// How many combinations of facts the engine looks at for this body. Per predicate it goes through every fact.
fn combinations(body: &[Predicate], facts: &[Fact]) -> usize {
    let all = facts.len() + REQUEST_FACTS.len();
    let matching = |predicate: &Predicate| {
        let own = facts.iter().filter(|fact| fact.predicate.name == predicate.name).count();
        own + usize::from(REQUEST_FACTS.contains(&predicate.name.as_str()))
    };
    let (mut steps, mut partial) = (1_usize, 1_usize);
    for predicate in body {
        steps = steps.saturating_add(partial.saturating_mul(all));
        partial = partial.saturating_mul(matching(predicate));
    }
    steps
}

/// Refuses operators of unknown cost; counts the others.
fn inspect_ops(ops: &[Op]) -> Result<usize, DatalogError> {
    let mut count = 0_usize;
    for op in ops {
        count += 1;
        match op {
            Op::Value(term) => inspect_terms([term])?,
            Op::Unary(Unary::Ffi(_)) | Op::Binary(Binary::Ffi(_)) => {
                return Err(DatalogError::Unbounded("functions of the host"));
            }
            Op::Binary(Binary::Regex) => return Err(DatalogError::Unbounded("regular expressions")),
            // The right sides of `&&` and `||` are closures without parameters.
            Op::Closure(parameters, _) if !parameters.is_empty() => {
                return Err(DatalogError::Unbounded("closures"));
            }
            Op::Closure(_, inner) => count += inspect_ops(inner)?,
            Op::Unary(_) | Op::Binary(_) => {}
        }
    }
    Ok(count)
}

/// Refuses placeholders, which stand for nothing here.
fn inspect_terms<'a>(terms: impl IntoIterator<Item = &'a Term>) -> Result<(), DatalogError> {
    match terms.into_iter().any(|term| matches!(term, Term::Parameter(_))) {
        true => Err(DatalogError::Syntax("a parameter in braces stands for nothing here".into())),
        false => Ok(()),
    }
}

fn at_most(what: &'static str, count: usize, max: usize) -> Result<(), DatalogError> {
    if count > max { Err(DatalogError::TooMany { what, count, max }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(source: &str) -> DatalogError {
        parse(source).unwrap_err()
    }

    #[test]
    fn what_grants_are_written_with_is_taken() {
        let source = r#"
            site("a.example"); site("b.example");
            check if operation("publish"), port(80), weekday($d), ["monday", "friday"].contains($d);
            check if time($t), $t < 2030-01-01T00:00:00Z or vm($v), $v.starts_with("web-") && $v.length() < 9;
            check all site($s), $s.ends_with(".example");
            reject if exit($c), !{"CH", "IS"}.contains($c);
        "#;
        let (facts, checks) = parse(source).unwrap();
        assert_eq!((facts.len(), checks.len()), (2, 4));
    }

    #[test]
    fn what_could_be_long_is_refused() {
        let too_many = |source: &str, of: &str| {
            let refusal = refusal(source);
            assert!(matches!(refusal, DatalogError::TooMany { what, .. } if what == of), "{refusal}");
        };
        assert!(matches!(refusal("n(0); n($x + 1) <- n($x)"), DatalogError::Syntax(_)));
        assert!(matches!(refusal("a($x) <- b($x)"), DatalogError::Rule(_)));
        assert_eq!(refusal("check if vm($v), $v.matches(\"(a+)+$\")"), DatalogError::Unbounded("regular expressions"));
        assert_eq!(refusal("check if [1, 2].any($x -> $x > 1)"), DatalogError::Unbounded("closures"));
        assert_eq!(refusal("check if 1.extern::f()"), DatalogError::Unbounded("functions of the host"));
        assert_eq!(refusal("check if vm($v) trusting previous"), DatalogError::Unbounded("scopes (`trusting`)"));
        let join: String = (0..20).map(|n| format!("f({n}); ")).collect();
        too_many(&format!("{join} check if f($a), f($b), f($c)"), "combinations of facts to try");
        too_many(&(0..33).map(|n| format!("f({n}); ")).collect::<String>(), "facts");
        too_many(&"check if true; ".repeat(33), "checks");
        too_many(&format!("check if {}", ["true"; 33].join(" or ")), "alternatives");
        too_many(&format!("check if {}1 > 0", "1 + ".repeat(40)), "operators and values in one alternative");
        too_many(&format!("check if {}true", "true && ".repeat(40)), "operators and values in one alternative");
    }

    #[test]
    fn a_text_that_would_exhaust_the_parser_is_refused_at_once() {
        assert_eq!(refusal(&" ".repeat(DATALOG_BYTES_MAX + 1)), DatalogError::TooLong(DATALOG_BYTES_MAX + 1));
        for opening in ["(", "[", "{", "!", "[("] {
            assert_eq!(refusal(&format!("check if {}", opening.repeat(500))), DatalogError::TooDeep);
        }
    }

    #[test]
    fn facts_of_the_request_cannot_be_forged_and_placeholders_stand_for_nothing() {
        for name in REQUEST_FACTS {
            assert_eq!(refusal(&format!("{name}(1)")), DatalogError::Reserved(name.into()));
        }
        for source in ["site({x})", "check if vm({x})", "check if vm($v), $v == {x}", "check if true trusting {x}"] {
            assert!(matches!(refusal(source), DatalogError::Syntax(_)), "{source}");
        }
    }
}
