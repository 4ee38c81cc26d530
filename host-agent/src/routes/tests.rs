use std::{fs, path::Path};

use wire::route::ROUTES_MAX;

use super::*;

struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("routes.d")).unwrap();
        World { dir }
    }

    fn own(&self) -> PathBuf {
        self.dir.path().join("routes.conf")
    }

    fn drop_in(&self, name: &str, text: &str) {
        fs::write(self.dir.path().join("routes.d").join(name), text).unwrap();
    }

    fn load(&self) -> Routes {
        Routes::load(self.dir.path().join("routes.d"), self.own())
    }
}

/// The lines in force: the file's name, the number, the route.
fn lines(routes: &Routes) -> Vec<String> {
    let name = |line: &Line| Path::new(&*line.file).file_name().unwrap().to_string_lossy().into_owned();
    routes.table().lines.iter().map(|line| format!("{}:{} {}", name(line), line.number, line.route)).collect()
}

#[tokio::test]
async fn drop_ins_and_the_apis_routes_are_one_table_in_the_order_of_their_names() {
    let world = World::new();
    world.drop_in("90-last.conf", "* * tor");
    world.drop_in("10-first.conf", "\n* a.example block # never");
    for ignored in [".hidden.conf", "readme", "10-first.conf~"] {
        world.drop_in(ignored, "nonsense");
    }
    let routes = world.load();
    let number = routes.table().number;
    let changed = routes.add("web b.example block", false).await.unwrap();
    assert_eq!(changed, Changed { table: number + 1, line: Some(1) });
    assert_eq!(routes.add("web  c.example   tor", false).await.unwrap().line, Some(2));
    assert_eq!(routes.add("web d.example tor", true).await.unwrap().line, Some(1));
    let expected = [
        "10-first.conf:2 * a.example block reject",
        "50-api.conf:1 web d.example tor",
        "50-api.conf:2 web b.example block reject",
        "50-api.conf:3 web c.example tor",
        "90-last.conf:1 * * tor",
    ];
    assert_eq!(lines(&routes), expected);
    assert_eq!(lines(&world.load()), expected, "they survive the agent");
    assert!(world.load().table().number > number);
    routes.remove(2).await.unwrap();
    assert!(matches!(routes.remove(3).await, Err(RoutesError::NoLine(3))));
    routes.set("# only this\n* * onion-only".into()).await.unwrap();
    assert_eq!(lines(&routes)[1], "50-api.conf:2 * * onion-only");
    assert!(matches!(routes.remove(1).await, Err(RoutesError::NoLine(1))), "a comment is no route");
}

#[tokio::test]
async fn what_is_wrong_changes_nothing_and_is_told() {
    let world = World::new();
    world.drop_in("10.conf", "* a.example block");
    let routes = world.load();
    routes.set("* b.example block".into()).await.unwrap();
    let before = (lines(&routes), routes.table().number, fs::read(world.own()).unwrap());
    assert!(
        matches!(routes.set("* * tor\nnonsense".into()).await, Err(RoutesError::Lines(errors)) if errors[0].line == 2)
    );
    assert!(matches!(routes.add("* *", false).await, Err(RoutesError::Lines(_))));
    assert!(matches!(routes.add("* * tor\n* * block", false).await, Err(RoutesError::Lines(_))));
    let many: String = (0..ROUTES_MAX).map(|n| format!("* n{n}.example tor\n")).collect();
    assert!(matches!(routes.set(many).await, Err(RoutesError::Files(_))), "one too many");
    world.drop_in("10.conf", "* a.example blokc");
    let error = routes.reload().await.unwrap_err().to_string();
    assert!(error.contains("10.conf:1:13") && error.contains("oht route reload"), "{error}");
    assert_eq!((lines(&routes), routes.table().number, fs::read(world.own()).unwrap()), before);
    assert_eq!(routes.table().problems.len(), 1);
    // What the API says goes on, with the drop-ins as they were.
    routes.add("* c.example block", false).await.unwrap();
    assert_eq!(lines(&routes).len(), 3);
    world.drop_in("10.conf", "* a.example tor");
    routes.reload().await.unwrap();
    assert_eq!((lines(&routes)[0].as_str(), routes.table().problems.len()), ("10.conf:1 * a.example tor", 0));
    let number = routes.table().number;
    assert_eq!(routes.reload().await.unwrap().table, number, "nothing to tell");
}

#[tokio::test]
async fn an_agent_that_starts_with_wrong_files_blocks_every_vm_until_they_are_mended() {
    let world = World::new();
    for (name, text) in [("10.conf", "nonsense"), ("50-api.conf", "* * tor")] {
        world.drop_in(name, text);
        let routes = world.load();
        assert!(routes.table().blocked && routes.table().problems[0].contains(name));
        assert_eq!(routes.table().routes(), ["* * block".parse::<Route>().unwrap()]);
        assert!(matches!(routes.add("* * tor", true).await, Err(RoutesError::Files(_))));
        assert!(routes.reload().await.is_err() && routes.table().blocked);
        fs::remove_file(world.dir.path().join("routes.d").join(name)).unwrap();
        routes.reload().await.unwrap();
        assert!(!routes.table().blocked && routes.table().lines.is_empty());
    }
    fs::write(world.own(), b"\xff\xfe").unwrap();
    assert!(world.load().table().blocked);
}

#[tokio::test]
async fn passwords_are_in_the_file_and_nowhere_else() {
    let world = World::new();
    let routes = world.load();
    routes.add("* * via socks5://me:secret@proxy.example:1080", false).await.unwrap();
    assert!(!lines(&routes)[0].contains("secret") && !format!("{:?}", routes.table()).contains("secret"));
    assert!(fs::read_to_string(world.own()).unwrap().contains("secret"));
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(world.own()).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    routes.add("* a.example block", true).await.unwrap();
    assert_eq!(world.load().table().routes(), routes.table().routes());
}
