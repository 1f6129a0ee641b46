"""Words that common tokenizers keep as one token each when a space stands before them: the safe vocabulary.

Why: a prompt of n such words is n tokens, at any length and any seam, without a tokenizer on our side. How well that
holds for a given server is measured, never assumed: calibration and every reply's usage are compared with the plan.
Data only. 512 words, so that nine bits choose one; order is part of the prompts' identity and must not change.
"""

from __future__ import annotations

_TEXT = """
the of and to in is that for it as was with be by on not he his but at are this have from or had an they which one
you were her all she there would their we him been has when who will more no if out so said what up its about into
than them can only other new some could time these two may then do first any my now such like our over man me even
most made after also did many before must through back years where much your way well down should because each just
those people too how little state good very make world still own see men work long get here between both life being
under never day same another know while last might us great old year off come since against go came right used take
three states himself few house use during without again place around however home small found thought went say part
once general high upon school every does got united left number course war until always away something fact though
water less public put think almost hand enough far took head yet government system better set told nothing night end
why called eyes find going look asked later knew point next program city business give group toward young days let
room word side social given present order national second possible rather per face among form important often things
early white case large big need four within felt along children saw best church ever least power development light
thing seemed family interest want members mind country area others done turned although open god service certain
kind problem began different door thus help sense means whole matter themselves local law president force human
known control company money position society question example above act action add age ago air allow alone already
anything art ask available ball bank bar base bed behind believe below bill bit black blood blue board body book box
boy break bring brother brought brown building built buy call car care carry cause center central century chance
change character child choice clear close club cold color common community complete condition consider cost cut data
dead deal death decided deep department design developed difference difficult dinner doing dog drive earth east easy
economic education effect effort eight else energy entire especially evidence experience expected extra fall fear
feel feet field figure fight final fine fire fish five floor food foot foreign former free french friend front full
future game garden gave girl glass gone ground growth hair half hands hard hear heard heart heavy held history hold
hope horse hot hour hours idea image increase individual industry information inside instead involved issue job keep
kept key king labor lake land language late lay lead leave led letter level likely limited line list live living
longer looking lost lot love low lower main making management map march market material maybe meeting method middle
miles million minutes modern moment month months moral morning mother move moved movement music name nature
"""
WORDS: tuple[str, ...] = tuple(_TEXT.split())
